//! Which loads an engine can hold at once, and how much memory they take there.

use serde::Serialize;

/// What a replica was sized for, and the memory of its fullest device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Capacity {
    /// Tokens of the longest sequence.
    pub max_model_len: usize,
    /// Sequences computed in one step, by one replica.
    pub max_sequences: usize,
    /// Blocks of one replica's KV cache.
    pub num_blocks: usize,
    /// Tokens of a block.
    pub block_size: usize,
    /// Copies of the model.
    pub replicas: usize,
    /// What the fullest device holds beside its KV cache.
    pub fixed_bytes: usize,
    /// A block's share of the fullest device.
    pub bytes_per_block: usize,
}

impl Capacity {
    /// Refuses requests that are too long for the context.
    ///
    /// # Errors
    /// Says how long they are, how long they may be, and which flag to change.
    pub fn check_length(&self, input_len: usize, output_len: usize) -> Result<(), String> {
        let asked = input_len + output_len;
        match asked <= self.max_model_len {
            true => Ok(()),
            false => Err(format!(
                "{input_len} tokens in and {output_len} out are {asked} and a sequence may have {}: raise --max-model-len \
                 to {asked} or lower --input-len",
                self.max_model_len
            )),
        }
    }

    /// Refuses requests that could not all run at once.
    ///
    /// # Errors
    /// Says what they need, what there is, and which flag to change.
    pub fn check_at_once(&self, count: usize, input_len: usize, output_len: usize) -> Result<(), String> {
        self.check_length(input_len, output_len)?;
        let of_replica = count.div_ceil(self.replicas);
        if self.max_sequences < of_replica {
            return Err(format!(
                "{count} requests at once are {of_replica} for a replica and it computes {}: raise --max-num-seqs or lower \
                 --batch-size",
                self.max_sequences
            ));
        }
        let needed = self.blocks(count, input_len, output_len);
        match needed <= self.num_blocks {
            true => Ok(()),
            false => Err(format!(
                "{count} requests of {input_len} tokens in and {output_len} out need {} tokens of KV cache and a replica \
                 has {}: lower --batch-size, or raise --gpu-memory-utilization (GPUs) or --kv-cache-memory (CPU)",
                needed * self.block_size,
                self.num_blocks * self.block_size
            )),
        }
    }

    /// Bytes that `count` requests at once need on the fullest device, the model included.
    #[must_use]
    pub fn bytes_at_once(&self, count: usize, input_len: usize, output_len: usize) -> usize {
        self.fixed_bytes + self.blocks(count, input_len, output_len) * self.bytes_per_block
    }

    /// Blocks of the replica with the most of `count` requests.
    fn blocks(&self, count: usize, input_len: usize, output_len: usize) -> usize {
        count.div_ceil(self.replicas) * (input_len + output_len).div_ceil(self.block_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: Capacity = Capacity {
        max_model_len: 100,
        max_sequences: 3,
        num_blocks: 20,
        block_size: 16,
        replicas: 2,
        fixed_bytes: 1000,
        bytes_per_block: 7,
    };

    #[test]
    fn what_does_not_fit_is_told_with_the_flag_that_helps() {
        assert_eq!(CAPACITY.check_at_once(4, 90, 10), Ok(()));
        let cases = [
            (
                (1, 91, 10),
                "91 tokens in and 10 out are 101 and a sequence may have 100: raise --max-model-len to 101",
            ),
            ((7, 1, 1), "7 requests at once are 4 for a replica and it computes 3: raise --max-num-seqs"),
            (
                (6, 90, 10),
                "6 requests of 90 tokens in and 10 out need 336 tokens of KV cache and a replica has 320",
            ),
        ];
        for ((count, input_len, output_len), expected) in cases {
            let error = CAPACITY.check_at_once(count, input_len, output_len).expect_err("it does not fit");
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn memory_is_counted_in_whole_blocks_of_the_fuller_replica() {
        assert_eq!(CAPACITY.bytes_at_once(3, 16, 1), 1000 + 2 * 2 * 7);
    }
}
