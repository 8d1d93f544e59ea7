//! Holds a tokenizer to ids that the reference gave: for tests with a real vocabulary, wherever that comes from.

use serde::Deserialize;

use crate::{SpecialTokens, TextError, Tokenizer};

/// Reference ids of one vocabulary, as `golden/tokenizer.py` writes them.
#[derive(Debug, Deserialize)]
pub struct TokenizerReference {
    vocab_size: usize,
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
struct Case {
    text: String,
    /// With special tokens parsed.
    ids: Vec<u32>,
    /// With special tokens as text, where that makes a difference.
    ids_as_text: Option<Vec<u32>>,
    /// The text that `ids` give without special tokens, where it is not `text`.
    decoded: Option<String>,
}

impl TokenizerReference {
    /// Reads the JSON of `golden/data/tokenizer_*.json`.
    ///
    /// # Errors
    /// It is not of that form.
    pub fn from_json(json: &str) -> Result<Self, TextError> {
        serde_json::from_str(json).map_err(|error| TextError::Tokenizer {
            origin: "the tokenizer reference".to_owned(),
            fault: error.to_string(),
        })
    }

    /// How many texts there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cases.len()
    }

    /// Whether there is nothing to compare with.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cases.is_empty()
    }

    /// One line for every difference between `tokenizer` and the reference; none is what is wanted.
    #[must_use]
    pub fn differences(&self, tokenizer: &Tokenizer) -> Vec<String> {
        let mut differences = Vec::new();
        if tokenizer.vocab_size() != self.vocab_size {
            let (ours, theirs) = (tokenizer.vocab_size(), self.vocab_size);
            differences.push(format!("the vocabulary has {ours} tokens, the reference {theirs}"));
        }
        for case in &self.cases {
            let text = &case.text;
            let as_text = case.ids_as_text.as_ref().unwrap_or(&case.ids);
            for (special, theirs) in [(SpecialTokens::Parse, &case.ids), (SpecialTokens::AsText, as_text)] {
                match tokenizer.encode(text, special) {
                    Ok(ours) if ours == *theirs => {}
                    ours => {
                        differences.push(format!("{text:?} ({special:?}): {ours:?}, reference {theirs:?}"));
                    }
                }
            }
            let (ours, theirs) = (tokenizer.decode(&case.ids, true), case.decoded.as_ref().unwrap_or(text));
            if ours != *theirs {
                differences.push(format!("{:?} decode to {ours:?}, reference {theirs:?}", case.ids));
            }
        }
        differences
    }
}
