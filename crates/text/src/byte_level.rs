//! The alphabet of byte-level BPE: each of the 256 bytes stands in the vocabulary as one printable character.
//!
//! GPT-2 chose it so that merges could be kept as lines of text: bytes that are printable in Latin-1 stand for
//! themselves, the other 68 are moved to U+0100 and up, in order (a space becomes `Ġ`, a newline `Ċ`).

/// The byte that a character of the alphabet stands for.
fn byte_of(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// Appends the bytes a vocabulary entry stands for.
///
/// An entry with a character outside the alphabet was never made of merges (an added token holding a space, say):
/// it stands for its own UTF-8, as in the reference's decoder.
pub(crate) fn append_bytes(entry: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for character in entry.chars() {
        match byte_of(character) {
            Some(byte) => bytes.push(byte),
            None => {
                bytes.truncate(start);
                bytes.extend_from_slice(entry.as_bytes());
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_covers_every_byte_once() {
        let mut seen = [0; 256];
        for character in (0..0x200).filter_map(char::from_u32) {
            if let Some(byte) = byte_of(character) {
                seen[usize::from(byte)] += 1;
            }
        }
        assert_eq!(seen, [1; 256]);
    }

    #[test]
    fn entries_become_bytes() {
        for (entry, expected) in [("Ġhello", " hello"), ("Ċ", "\n"), ("çļĦ", "的"), ("<|a b|>Ġ", "<|a b|>Ġ")]
        {
            let mut bytes = Vec::new();
            append_bytes(entry, &mut bytes);
            assert_eq!(String::from_utf8_lossy(&bytes), expected);
        }
    }
}
