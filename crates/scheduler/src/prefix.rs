//! Names for full blocks: a keyed hash chain, so that equal beginnings of sequences find each other's blocks.
//!
//! A block's hash covers its own tokens and the hash of the block before it, hence every token up to its end.
//! The hash is 256 bits of BLAKE3 under a secret key: nobody can craft two prompts that share a block by a
//! collision, which with a weak hash would serve one user's text from another's cache (CVE-2025-25183).

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::step::{BlockId, TokenId};

/// The name of a full block and of everything before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockHash([u8; 32]);

impl std::hash::Hash for BlockHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

/// What the hashed bytes are; keeps a salt chosen by a client from posing as a block.
const SALT: u8 = 0;
const BLOCK: u8 = 1;

/// Computes the links of the chain.
pub(crate) struct HashChain {
    key: [u8; 32],
    /// One block's input, kept to spare an allocation a block.
    input: Vec<u8>,
}

impl HashChain {
    pub(crate) fn new(key: [u8; 32]) -> Self {
        Self { key, input: Vec::new() }
    }

    /// Where a chain starts. Sequences of different salts never share a block.
    pub(crate) fn root(&mut self, salt: Option<&[u8]>) -> BlockHash {
        self.input.clear();
        match salt {
            None => BlockHash([0; 32]),
            Some(salt) => {
                self.input.push(SALT);
                self.input.extend_from_slice(salt);
                BlockHash(*blake3::keyed_hash(&self.key, &self.input).as_bytes())
            }
        }
    }

    /// The hash of the block that holds `tokens` and follows the block named `parent`.
    pub(crate) fn next(&mut self, parent: BlockHash, tokens: impl Iterator<Item = TokenId>) -> BlockHash {
        self.input.clear();
        self.input.push(BLOCK);
        self.input.extend_from_slice(&parent.0);
        for token in tokens {
            self.input.extend_from_slice(&token.to_le_bytes());
        }
        BlockHash(*blake3::keyed_hash(&self.key, &self.input).as_bytes())
    }
}

/// Which block holds the content of a name. Names are uniform bytes, so eight of them are hash enough.
pub(crate) type PrefixIndex = HashMap<BlockHash, BlockId, BuildHasherDefault<FirstBytes>>;

/// Takes the first eight bytes of a [`BlockHash`] as they are.
#[derive(Default)]
pub(crate) struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let first = bytes.first_chunk::<8>().expect("only block hashes, of 32 bytes, are keys of the index");
        self.0 = u64::from_le_bytes(*first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_salt_cannot_pose_as_a_block() {
        let mut chain = HashChain::new([5; 32]);
        let root = chain.root(None);
        let block = chain.next(root, [1, 2].into_iter());
        let mut salt = vec![0; 32];
        salt.extend([1, 0, 0, 0, 2, 0, 0, 0]);
        assert_ne!(chain.root(Some(&salt)), block);
        assert_ne!(chain.root(Some(&[])), root);
    }
}
