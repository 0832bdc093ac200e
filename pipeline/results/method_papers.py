"""The paper of every method, for links in pages."""

from __future__ import annotations

from collections.abc import Mapping

ARXIV: Mapping[str, str] = {
    "ultraedit": "2505.14679", "stableedit": "2605.11836", "ft_l": "2012.00363",
    "locft": "2509.22072", "rome": "2202.05262", "memit": "2210.07229", "prune": "2405.16821",
    "rect": "2401.04700", "alphaedit": "2410.02355", "nas": "2602.02543", "encore": "2502.01636",
    "lyaplock": "2505.15702", "betaedit": "2605.09285", "deltaedit": "2505.07899",
    "grace": "2211.11031", "wise": "2405.14768", "memoir": "2506.07899",
    "mend": "2110.11309", "malmen": "2311.04661", "mend_star": "2502.05759",
    "malmen_star": "2502.05759", "mend_rledit": "2502.05759", "malmen_rledit": "2502.05759",
    "dafnet": "2405.20588", "instructedit": "2402.16123",
    "crispedit": "2602.15823",
    "hiedit": "2604.11214",
    "rledit": "2502.05759", "untrained": "2502.05759",
}  # fmt: skip


def paper_url(label: str) -> str:
    """The paper of a method by its name in a table, ours or a paper's; "" where there is none."""
    name = label.partition(" (")[0].casefold().replace("*", "_star")
    name = name.replace("-", "_").replace("+", "_")
    found = ARXIV.get(name) or ARXIV.get({"locft_bf": "locft"}.get(name, ""))
    return f"https://arxiv.org/abs/{found}" if found else ""
