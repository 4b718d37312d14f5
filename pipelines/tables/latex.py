"""Escapes text for LaTeX, in characters that every LaTeX can typeset."""

import re
import unicodedata

_NAMES = """
α alpha  β beta  γ gamma  δ delta  ε varepsilon  ζ zeta  η eta  θ theta  ι iota  κ kappa  λ lambda
μ mu  ν nu  ξ xi  π pi  ρ rho  ς varsigma  σ sigma  τ tau  υ upsilon  φ varphi  χ chi  ψ psi
ω omega  ϑ vartheta  ϕ phi  ϵ epsilon  Γ Gamma  Δ Delta  Θ Theta  Λ Lambda  Ξ Xi  Π Pi  Σ Sigma
Υ Upsilon  Φ Phi  Ψ Psi  Ω Omega  ≤ le  ≥ ge  ≠ ne  ≈ approx  ≪ ll  ≫ gg  ∼ sim  ≡ equiv  ∝ propto
± pm  ∓ mp  × times  ÷ div  · cdot  ⋅ cdot  ∘ circ  ⊕ oplus  ⊗ otimes  ← leftarrow  → rightarrow
↔ leftrightarrow  ⇒ Rightarrow  ↑ uparrow  ↓ downarrow  ∞ infty  ∈ in  ∪ cup  ∩ cap  ⊂ subset
⊆ subseteq  ∅ emptyset  ∀ forall  ∃ exists  ∂ partial  ∇ nabla  ∑ sum  ∏ prod  ∫ int  √ surd
† dagger  ‡ ddagger  • bullet
"""
MATHS = {letter: rf"\{name}" for letter, name in re.findall(r"(\S) (\w+)", _NAMES)}
MATHS |= {"<": "<", ">": ">", "|": "|", "−": "-"}
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
