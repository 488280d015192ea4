"""Two steps of nbdev's way from notebooks to pages, done differently; settings.ini names them.

nbdev leaves cells marked `#| exporti` out, but a lesson that builds a helper should show it. And it
gives each exported cell a fold, also where the cell has its own, which Quarto refuses as doubled.
"""

HIDDEN = {"export", "hide", "default_exp"}
OWN = ("#| code-fold: show\n", '#| code-summary: "Exported source"\n')  # the lines that nbdev adds


def hide_cells(cell):
    """Leave out what nbdev's `rm_export` does, but for cells marked `exporti`"""
    if cell.directives_ and cell.directives_.keys() & HIDDEN: del cell["source"]


def one_fold(cell):
    """Take nbdev's fold away from a cell that says itself how it is folded"""
    for added in OWN:
        first, option, rest = cell.source.partition(added)
        if option and added.split(":")[0] + ":" in rest: cell.source = first + rest
