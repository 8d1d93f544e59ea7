//! Two rare characters on which the encoder cuts text into words otherwise than the reference does.
//!
//! Compared over all of Unicode, fastokens 0.3 differs from the reference's regular expressions twice: it does not
//! take `'ſ` (U+017F, which folds to `s`) for a contraction, and it takes U+180E, the Mongolian vowel separator, for a
//! space. A text with one of these is cut here, and its words are then encoded as they are.

use fastokens::PreTokenizer;
use fastokens::pre_tokenized::PreTokenizedString;

use crate::TextError;

/// How a splitting rule that knows contractions in either case begins: Qwen2's and Llama 3's.
const CONTRACTIONS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|";

/// A contraction to the reference, an apostrophe and a letter to the encoder.
const LONG_S: &str = "'ſ";

/// A space to the encoder; to the reference neither space, letter nor number.
const VOWEL_SEPARATOR: &str = "\u{180e}";

/// A character of as many bytes that both take for neither space, letter nor number.
const STAND_IN: &str = "\u{180d}";

/// Whether the words of this text must be cut by [`encode`].
pub(crate) fn differ(text: &str) -> bool {
    text.contains(LONG_S) || text.contains(VOWEL_SEPARATOR)
}

/// Whether a tokenizer's rule is one that [`encode`] knows: contractions first, then byte-level BPE.
pub(crate) fn rule_is_known(description: &serde_json::Value) -> bool {
    let steps = &description["pre_tokenizer"]["pretokenizers"];
    let pattern = steps[0]["pattern"]["Regex"].as_str().unwrap_or_default();
    pattern.starts_with(CONTRACTIONS) && steps[1]["type"] == "ByteLevel" && steps[1]["use_regex"] == false
}

/// The ids of a text, its words cut as the reference cuts them.
pub(crate) fn encode(
    encoder: &fastokens::Tokenizer,
    text: &str,
    skip_special: bool,
) -> Result<Vec<u32>, TextError> {
    let Some(PreTokenizer::Sequence(steps)) = encoder.pre_tokenizer() else {
        return Err(TextError::Encode("its splitting rule is not the one it was loaded with".to_owned()));
    };
    let segments = encoder.build_pre_tokenized_with(text, skip_special);
    let original = segments.buffer();
    let disguised = original.replace(VOWEL_SEPARATOR, STAND_IN);
    let mut words = PreTokenizedString::new(disguised, segments.splits().to_vec());
    steps[0].pre_tokenize(&mut words).map_err(|error| TextError::Encode(error.to_string()))?;

    let mut ids = Vec::with_capacity(text.len() / 3);
    for split in words.splits() {
        if let Some(id) = split.token_id {
            ids.push(id);
            continue;
        }
        let word = &original[split.range.clone()];
        // A word can begin with an apostrophe and a letter only where a contraction could have begun.
        let contraction = if word.starts_with(LONG_S) { LONG_S.len() } else { 0 };
        let (contraction, rest) = word.split_at(contraction);
        for part in [contraction, rest] {
            if !part.is_empty() {
                encoder.model().tokenize_into_fused(part, &mut ids).map_err(TextError::Encode)?;
            }
        }
    }
    Ok(ids)
}
