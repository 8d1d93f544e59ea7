//! A byte-level BPE vocabulary as plain values, as GGUF metadata carries it, and its way to a tokenizer's description.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use crate::TextError;

/// How Qwen2 cuts text into words before merges: contractions, words with one leading sign, single digits, signs,
/// line ends, spaces.
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// GGUF's token types (`tokenizer.ggml.token_type`).
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// A byte-level BPE vocabulary. The fields are those of GGUF's `tokenizer.ggml.*`; an entry's index is its id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vocabulary {
    /// Every entry's text in the byte-level alphabet.
    pub tokens: Vec<String>,
    /// Every entry's type: 1 normal, 3 control, 4 user-defined, 5 unused (padding rows). Others are refused.
    pub token_types: Vec<i32>,
    /// Merges by rank, each two entries with one space between.
    pub merges: Vec<String>,
    /// The name of the rule that cuts text into words; `qwen2` is the one known.
    pub pre: String,
    /// The token that opens a text, for models that want one.
    pub bos: Option<u32>,
    /// The token that ends an answer.
    pub eos: Option<u32>,
}

impl Vocabulary {
    /// The same vocabulary in the form of a `tokenizer.json`; rows that pad the model's matrices are left out.
    ///
    /// # Errors
    /// Counts that disagree, an unknown pre-tokenizer or token type, a duplicate entry: each named.
    pub(crate) fn to_tokenizer_json(&self) -> Result<Value, TextError> {
        let split = match self.pre.as_str() {
            "qwen2" | "deepseek-r1-qwen" => QWEN2_SPLIT,
            other => {
                return Err(broken(format!("its pre-tokenizer is `{other}`, but only `qwen2` is known")));
            }
        };
        if self.tokens.len() != self.token_types.len() {
            let (tokens, types) = (self.tokens.len(), self.token_types.len());
            return Err(broken(format!("it has {tokens} tokens but {types} token types")));
        }
        let (vocab, added_tokens) = self.entries()?;
        let byte_level = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false
        });
        Ok(json!({
            "version": "1.0",
            "added_tokens": added_tokens,
            "normalizer": { "type": "NFC" },
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": split }, "behavior": "Isolated", "invert": false },
                byte_level,
            ] },
            "post_processor": byte_level,
            "decoder": byte_level,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocab, "merges": self.merges,
            },
        }))
    }

    /// The entries made by merges, and the added ones.
    fn entries(&self) -> Result<(Map<String, Value>, Vec<Value>), TextError> {
        let mut vocab = Map::with_capacity(self.tokens.len());
        let mut added = Vec::new();
        let mut seen = HashSet::with_capacity(self.tokens.len());
        for (id, (token, kind)) in self.tokens.iter().zip(&self.token_types).enumerate() {
            if *kind == UNUSED {
                continue;
            }
            if !seen.insert(token) {
                return Err(broken(format!("token {id} repeats the text {token:?} of an earlier one")));
            }
            match *kind {
                NORMAL => drop(vocab.insert(token.clone(), Value::from(id))),
                CONTROL | USER_DEFINED => added.push(json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": *kind == CONTROL,
                })),
                other => return Err(broken(format!("token {id} has the type {other}, which is not known"))),
            }
        }
        Ok((vocab, added))
    }
}

/// The error of a vocabulary that cannot be used.
fn broken(fault: String) -> TextError {
    TextError::Tokenizer { origin: "the vocabulary in the model file".to_owned(), fault }
}
