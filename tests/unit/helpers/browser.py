"""Looks at a page in headless Chromium at a given width: what is wider than it, what overlaps."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--virtual-time-budget=20000",
)  # fmt: skip
# Runs beside the page, which allows no scripts. A text's box is made a little smaller than it is:
# lines above each other may touch.
SCRIPT = """
const frame = document.querySelector('iframe');
frame.onload = () => {
  const page = frame.contentDocument;
  page.querySelectorAll('details').forEach(d => d.open = true);
  const text = e => e.textContent.trim();
  const overlaps = [], cut = [];
  page.querySelectorAll('figure svg').forEach(svg => {
    const own = svg.getBoundingClientRect();
    const boxes = [...svg.querySelectorAll('text')].filter(text).map(
      e => ({name: text(e), box: e.getBoundingClientRect()}));
    boxes.forEach((a, i) => {
      if (a.box.left < own.left - 1.5 || a.box.right > own.right + 1.5 ||
          a.box.top < own.top - 3 || a.box.bottom > own.bottom + 3) cut.push(a.name);
      boxes.slice(i + 1).forEach(b => {
        const x = Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left);
        const y = Math.min(a.box.bottom, b.box.bottom) - Math.max(a.box.top, b.box.top);
        if (x > 1 && y > 3) overlaps.push(a.name + ' / ' + b.name);
      });
    });
  });
  const small = [...page.querySelectorAll('figure svg text')].filter(
    e => e.getBoundingClientRect().height < 9).map(text);
  const root = page.documentElement;
  const found = {
    width: root.clientWidth, scroll: root.scrollWidth, overlaps, cut, small,
    texts: page.querySelectorAll('figure svg text').length,
    dark: frame.contentWindow.matchMedia('(prefers-color-scheme: dark)').matches,
    background: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    ink: frame.contentWindow.getComputedStyle(page.body).color,
  };
  const out = document.createElement('script');
  out.type = 'application/json'; out.id = 'found';
  out.textContent = JSON.stringify(found).replaceAll('<', '\\\\u003c');
  frame.remove(); document.body.append(out);
};
"""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A page as a browser lays it out, all details open.

    Attributes:
        width: Of the window, in pixels.
        scroll: Of the page; where it is more than the width, the page scrolls sideways.
        overlaps: Texts of figures that lie on each other, in pairs.
        cut: Texts of figures that reach beyond their picture.
        small: Texts of figures less than nine pixels high.
        texts: How many texts the figures have.
        dark: Whether the page is asked to be dark.
        background: The page's colour.
        ink: The colour of its text.
    """

    width: int
    scroll: int
    overlaps: list[str]
    cut: list[str]
    small: list[str]
    texts: int
    dark: bool
    background: str
    ink: str


def look_at(page: str, width: int, folder: Path, *, dark: bool = False) -> Seen:
    """Opens a page's HTML in a frame of this width; skips the test where there is no Chromium."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    around = folder / f"around-{width}-{dark}.html"
    frame = f'<iframe width="{width}" height="2000" style="border: 0" srcdoc="{html.escape(page)}">'
    # Without the charset a browser guesses, by the bytes that happen to come first.
    around.write_text(
        f'<!doctype html><meta charset="utf-8"><body>{frame}</iframe>'
        f"<script>{SCRIPT}</script></body>",
        encoding="utf-8",
    )
    # The light scheme is 1 and the dark one 0.
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    done = subprocess.run(
        [program, *FLAGS, scheme, f"--user-data-dir={folder / 'profile'}",
         f"--window-size={max(width, 500)},2000", "--dump-dom", around.as_uri()],
        capture_output=True, encoding="utf-8", timeout=120, check=False,
    )  # fmt: skip
    found = re.search(r'<script type="application/json" id="found">(.*?)</script>', done.stdout)
    assert found is not None, done.stderr[-2000:]
    return Seen(**json.loads(found[1]))
