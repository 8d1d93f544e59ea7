#!/usr/bin/env python3
"""Writes the token ids that Hugging Face tokenizers gives, for Phalanx's tokenizer to be held to.

    pip install tokenizers==0.23.3 gguf==0.19.0
    python golden/tokenizer.py qwen2.5-coder-0.5b-instruct-q4_k_m.gguf

Two files come out:
  golden/data/tokenizer_qwen2_5.json        ids of the real Qwen2.5 vocabulary, read from the GGUF given
  crates/text/tests/data/tiny_tokenizer.json  a vocabulary of 768 merges trained here, small enough for unit tests
"""

import hashlib
import json
import pathlib
import sys

import tokenizers
from gguf import GGUFReader
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parent.parent
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

TEXTS = [
    "",
    " ",
    "  ",
    "a",
    "Hello, world!",
    "Hello  world   three    four",
    "The quick brown fox jumps over the lazy dog.",
    "I'm sure you'll say they've won; he'd've TOLD us it'S OK, DON'T.",
    "'s 'S 'ſ ’s",
    "请解释量子纠缠的基本原理，并用中文输出。",
    "今天天气很好，我们去公园散步吧！",
    "繁體中文測試：龍、龜、鬱。",
    "日本語のテキスト、カタカナ、ひらがな、漢字。ﾊﾝｶｸ",
    "한국어 문장입니다. 각 각 ᄀ",
    "مرحبا بالعالم! كيف حالك؟ ٠١٢٣٤٥٦٧٨٩",
    "שלום עולם, מה שלומך?",
    "नमस्ते दुनिया, क्या हाल है?",
    "สวัสดีชาวโลก",
    "Привет, мир! Ёлка и ёж.",
    "Γειά σου Κόσμε, τι κάνεις;",
    "Xin chào thế giới, Tiếng Việt có dấu.",
    "naïve café résumé — decomposed: nai\u0308ve cafe\u0301 re\u0301sume\u0301",
    "Å Å Å ﬁ ﬂ ½ Ⅷ ² ₂",
    "e\u0301\u0323\u0301 q\u0307\u0323 \u0301alone",
    "😀😃😄 😂🤣",
    "👨‍👩‍👧‍👦 👩🏽‍💻 🏳️‍🌈 🇩🇪🇨🇳 1️⃣ ❤️",
    "👍🏻👍🏼👍🏽👍🏾👍🏿",
    "math: ∀x∈ℝ, ∃y: x² + y² ≤ 1 ⇒ |x| ≤ 1; ∫₀^∞ e^{-x²} dx = √π/2",
    "0123456789 3.14159 1,000,000 2026-11-23 0xDEADBEEF 1e-05",
    "١٢٣ ४५६ 七八九 Ⅳ ①②③ 𝟙𝟚𝟛",
    "tabs\tand\ttabs\t\t\tdone",
    "line\nline\n\nline\n\n\nline",
    "dos\r\ndos\r\n\r\ndos\rmac",
    "trailing spaces   \n   leading spaces",
    "   \n  \n ",
    " \t \t x",
    "nbsp\u00a0here ideographic\u3000space line\u2028sep zero\u200bwidth nel\u0085end",
    "a" * 200,
    " " * 300,
    "\n" * 50,
    "!" * 64 + "?" * 64,
    "=" * 80 + "\n" + "-" * 80,
    "def f(x: int) -> int:\n    if x < 2:\n        return 1\n    return x * f(x - 1)\n",
    "fn main() {\n\tlet v: Vec<u32> = (0..10).map(|x| x * x).collect();\n\tprintln!(\"{v:?}\");\n}\n",
    "#include <stdio.h>\nint main(void) { printf(\"%d\\n\", 42); return 0; }\n",
    "SELECT * FROM users WHERE name = 'O''Brien' AND age >= 18;",
    '{"name": "get_weather", "arguments": {"city": "北京", "days": [1, 2, 3], "ok": true, "x": null}}',
    "<html><body class=\"a b\">&nbsp;<!-- comment --></body></html>",
    "https://example.com/a/b?c=d&e=%20f#g user@example.com C:\\Windows\\System32",
    "snake_case camelCase PascalCase kebab-case SCREAMING_CASE __dunder__",
    "<|im_start|>system\nYou are Qwen.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "text<|endoftext|>more<|im_end|>",
    "<|im_end|><|im_end|> <|im_end|>\n",
    "<|im_end|",
    "<|im_end |> <| im_end|> < |im_end|> <|IM_END|> ＜|im_end|＞",
    "<tool_call>\n{\"name\": \"f\"}\n</tool_call>",
    "<|fim_prefix|>def<|fim_suffix|>return<|fim_middle|>",
    "<|vision_start|><|image_pad|><|vision_end|> <|box_start|>(1,2)<|box_end|>",
    "\u0000\u0001\u0007\u001b[31mred\u001b[0m\u007f",
    "\ufeffbom \ufffd replacement \ue000 private \U000f0000 \U0010ffff",
    "𓀀𓁐 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠜎𠜱 🜁",
    "Zalgo: H\u0334\u0315e\u0337\u0301l\u0336\u0302l\u0335\u0308o\u0338\u0303",
    "mixed 中文English混合123数字，punctuation。OK？",
]

TRAINING = TEXTS + [
    "The tower decides what to compute next, and the machine hall computes it. A step gives some sequences some "
    "tokens, so that what is computed catches up with what is there. A block holds the keys and values of sixteen "
    "tokens; a block table says where they are. When memory runs out the youngest sequence gives its blocks back.",
    "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق، وقد وهبوا عقلاً وضميراً.",
    "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience.",
]


def pipeline(tokenizer):
    """Gives a BPE model Qwen2's normaliser, splitting rule and decoder."""
    byte_level = dict(add_prefix_space=False, use_regex=False)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(**byte_level)]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel(**byte_level)
    return tokenizer


def added(tokens, types):
    """GGUF's types: 3 is control (special), 4 is user-defined."""
    for token, kind in zip(tokens, types):
        if kind in (3, 4):
            yield tokenizers.AddedToken(token, normalized=False, special=kind == 3)


def real(path):
    reader = GGUFReader(path)
    read = lambda key: reader.fields["tokenizer.ggml." + key].contents()
    tokens, types, merges = read("tokens"), read("token_type"), read("merges")
    vocab = {token: i for i, (token, kind) in enumerate(zip(tokens, types)) if kind == 1}
    tokenizer = pipeline(Tokenizer(models.BPE(vocab, [tuple(merge.split(" ")) for merge in merges])))
    tokenizer.add_tokens(list(added(tokens, types)))
    for i, (token, kind) in enumerate(zip(tokens, types)):
        assert kind == 5 or tokenizer.token_to_id(token) == i, (i, token)
    return tokenizer, [token for token, kind in zip(tokens, types) if kind in (3, 4)], types


def tiny(names, types):
    kinds = [kind for kind in types if kind in (3, 4)]
    tokenizer = pipeline(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=1024, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING, trainer)
    tokenizer.add_tokens(list(added(names, kinds)))
    return tokenizer


def cases(tokenizer):
    """Each text's ids with special tokens parsed, and with them as text (`split_special_tokens`)."""
    for text in TEXTS:
        tokenizer.encode_special_tokens = False
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        tokenizer.encode_special_tokens = True
        as_text = tokenizer.encode(text, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = False
        case = {"text": text, "ids": ids}
        # Left out where they say nothing new.
        if as_text != ids:
            case["ids_as_text"] = as_text
        if decoded != text:
            case["decoded"] = decoded
        yield case


def main():
    path = sys.argv[1]
    tokenizer, names, types = real(path)
    digest = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    golden = {
        "made_by": f"golden/tokenizer.py, tokenizers {tokenizers.__version__}",
        "vocabulary_of": {"file": pathlib.Path(path).name, "sha256": digest},
        "vocab_size": tokenizer.get_vocab_size(with_added_tokens=True),
        "cases": list(cases(tokenizer)),
    }
    lines = json.dumps(golden, ensure_ascii=True, indent=None, separators=(",", ":"))
    (ROOT / "golden/data").mkdir(exist_ok=True)
    (ROOT / "golden/data/tokenizer_qwen2_5.json").write_text(lines.replace('{"text"', '\n{"text"') + "\n")
    tiny(names, types).save(str(ROOT / "crates/text/tests/data/tiny_tokenizer.json"), pretty=False)


main()
