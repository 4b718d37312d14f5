"""Escapes text for LaTeX, in characters that every LaTeX can typeset."""

import unicodedata

MATHS = {
    "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "δ": r"\delta", "ε": r"\varepsilon",
    "ζ": r"\zeta", "η": r"\eta", "θ": r"\theta", "ι": r"\iota", "κ": r"\kappa", "λ": r"\lambda",
    "μ": r"\mu", "ν": r"\nu", "ξ": r"\xi", "π": r"\pi", "ρ": r"\rho", "ς": r"\varsigma",
    "σ": r"\sigma", "τ": r"\tau", "υ": r"\upsilon", "φ": r"\varphi", "χ": r"\chi", "ψ": r"\psi",
    "ω": r"\omega", "ϑ": r"\vartheta", "ϕ": r"\phi", "ϵ": r"\epsilon",
    "Γ": r"\Gamma", "Δ": r"\Delta", "Θ": r"\Theta", "Λ": r"\Lambda", "Ξ": r"\Xi", "Π": r"\Pi",
    "Σ": r"\Sigma", "Υ": r"\Upsilon", "Φ": r"\Phi", "Ψ": r"\Psi", "Ω": r"\Omega",
    "≤": r"\le", "≥": r"\ge", "≠": r"\ne", "≈": r"\approx", "≪": r"\ll", "≫": r"\gg",
    "∼": r"\sim", "≡": r"\equiv", "∝": r"\propto", "±": r"\pm", "∓": r"\mp", "×": r"\times",
    "÷": r"\div", "·": r"\cdot", "⋅": r"\cdot", "∘": r"\circ", "⊕": r"\oplus", "⊗": r"\otimes",
    "←": r"\leftarrow", "→": r"\rightarrow", "↔": r"\leftrightarrow", "⇒": r"\Rightarrow",
    "↑": r"\uparrow", "↓": r"\downarrow", "∞": r"\infty", "∈": r"\in", "∪": r"\cup", "∩": r"\cap",
    "⊂": r"\subset", "⊆": r"\subseteq", "∅": r"\emptyset", "∀": r"\forall", "∃": r"\exists",
    "∂": r"\partial", "∇": r"\nabla", "∑": r"\sum", "∏": r"\prod", "∫": r"\int", "√": r"\surd",
    "†": r"\dagger", "‡": r"\ddagger", "•": r"\bullet", "<": "<", ">": ">", "|": "|", "−": "-",
}  # fmt: skip
"""Characters that are written as mathematics, between dollars."""
_TEXT = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "✓": r"$\surd$", "✗": r"$\times$",
    "µ": r"$\mu$", "°": r"$^{\circ}$", "§": r"\S{}", "…": r"\dots{}", "–": "--", "—": "---",
    "‘": "`", "’": "'", "“": "``", "”": "''",
    "\u00a0": "~", "\u202f": r"\,", "\u2009": r"\,", "\u2011": "-", "\u200b": "",
    "ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}", "ø": r"\o{}",
    "Ø": r"\O{}", "ł": r"\l{}", "Ł": r"\L{}", "ı": r"\i{}",
}  # fmt: skip
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u",
    "\u0307": ".", "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c",
}  # fmt: skip


def escape(text: str) -> str:
    """Returns a text in ASCII that LaTeX typesets without further packages.

    A character without a LaTeX name is written as its number, [U+4E2D]: the table of a long run is
    not lost, and its reader sees which character to replace.
    """
    return "".join(_letter(letter) for letter in unicodedata.normalize("NFC", text))


def _letter(letter: str) -> str:
    if letter in MATHS:
        return f"${MATHS[letter]}$"
    if letter in _TEXT:
        return _TEXT[letter]
    if letter.isspace():
        return " "  # an empty line would end the paragraph
    if letter.isascii() and letter.isprintable():
        return letter
    return _accented(letter) or _raised(letter) or f"[U+{ord(letter):04X}]"


def _accented(letter: str) -> str:
    base, *marks = list(unicodedata.normalize("NFD", letter))
    if len(marks) != 1 or marks[0] not in _ACCENTS or not base.isascii():
        return ""
    dotless = rf"\{base}" if base in "ij" and marks[0] != "\u0327" else base
    return rf"\{_ACCENTS[marks[0]]}{{{dotless}}}"


def _raised(letter: str) -> str:
    """Returns the LaTeX of a superscript or subscript letter or digit."""
    kind, _, number = unicodedata.decomposition(letter).partition(" ")
    place = {"<super>": "^", "<sub>": "_"}.get(kind)
    if place is None or " " in number or not chr(int(number, 16)).isalnum():
        return ""
    inner = chr(int(number, 16))
    return f"${place}{{{MATHS.get(inner, inner)}}}$" if inner.isascii() or inner in MATHS else ""
