"use strict";
// Shows the figures that a page holds, when they come near the part of it that is seen.
(function () {
  const shown = document.querySelectorAll(".asks");
  if (typeof DecompressionStream === "undefined") {
    shown.forEach((figure) => (figure.textContent = "This figure needs a newer browser, of 2023 or later."));
    return;
  }

  function unpacked(id) {
    const letters = atob(document.getElementById(id).textContent.trim());
    const bytes = Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }

  // A finger that drags scrolls the page; it selects by touching a run.
  const finger = matchMedia("(pointer: coarse)").matches;
  const parsed = (text) => JSON.parse(text, (key, value) => (finger && key === "active_drag" ? null : value));

  let library = null;
  async function show(figure) {
    if (library === null) {
      library = unpacked("library").then((code) => {
        const script = document.createElement("script");
        script.textContent = code;
        document.head.append(script);
      });
    }
    await library;
    const found = parsed(await unpacked(figure.dataset.of));
    await Bokeh.embed.embed_items(found.documents, found.items);
    figure.classList.add("shown");
  }

  const watch = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) {
        watch.unobserve(target);
        show(target);
      }
    }
  }, { rootMargin: "800px" });
  shown.forEach((figure) => watch.observe(figure));
})();
