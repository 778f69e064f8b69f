"""Run the notebooks from top to bottom and keep their outputs.

python -m notebooks.execute
"""

from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def execute(path: Path, shorter: Mapping[str, str] | None = None) -> NotebookNode:
    """A notebook with new outputs, and nothing in it of where and when it ran.

    Args:
      path: of the notebook.
      shorter: texts of its cells to replace, for less work.
    """
    notebook = nbformat.read(path, as_version=4)
    for text, replacement in (shorter or {}).items():
        for cell in notebook.cells:
            cell.source = cell.source.replace(text, replacement)
    # From the root, where highway_jax can be imported whether it is installed or not.
    where = {"metadata": {"path": str(ROOT)}}
    NotebookClient(notebook, timeout=None, kernel_name="python3", record_timing=False, resources=where).execute()
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return notebook


if __name__ == "__main__":
    for path in NOTEBOOKS:
        nbformat.write(execute(path), path)
        print(path.relative_to(ROOT))
