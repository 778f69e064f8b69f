"""The paper's experiments, its claims judged by what came out, and the page that says so."""
