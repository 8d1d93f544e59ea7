//! Which part of each weight a rank holds: a span of layers, a run of heads, columns of the MLP, rows of the vocabulary.

use std::ops::Range;

use phalanx_device::backend::Heads;

use crate::architectures::{self, TensorKind};
use crate::config::ModelConfig;
use crate::error::LoadError;
use crate::place::{Place, deal, unit_that_serves_all};
use crate::weights::WeightFormats;

/// Kernels like the columns of an MLP and the rows of a vocabulary in multiples of this.
const TILE: usize = 64;

/// One rank's part of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shards {
    /// Whose part.
    pub place: Place,
    /// Layers of this stage.
    pub layers: Range<usize>,
    /// Query heads of the whole model that this rank computes.
    pub query_heads: Range<usize>,
    /// KV heads that those read; a neighbour may hold one of them, too.
    pub kv_heads: Range<usize>,
    /// The same as the device wants to know it.
    pub heads: Heads,
    /// Columns of the attention's output matrix.
    pub attention_columns: Columns,
    /// Rows of gate and up, columns of down.
    pub mlp_columns: Columns,
    /// Rows of the embedding and of the output matrix.
    pub vocab: Range<usize>,
}

/// A rank's columns of a matrix whose rows are encoded in blocks.
///
/// Where a run ends inside a block the rank reads the whole block, and its activations are zero at the columns that
/// are not its own: each column's products are added on exactly one rank, and nothing is quantised anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The columns this rank computes.
    pub own: Range<usize>,
    /// The whole blocks around them, which it reads.
    pub cover: Range<usize>,
}

impl Columns {
    fn new(own: Range<usize>, block_len: usize) -> Self {
        let cover = own.start / block_len * block_len..own.end.next_multiple_of(block_len);
        Self { own, cover }
    }

    /// Where its own columns lie inside an activation as wide as `cover`.
    #[must_use]
    pub fn own_in_cover(&self) -> Range<usize> {
        self.own.start - self.cover.start..self.own.end - self.cover.start
    }
}

/// A rectangle of a stored tensor, with the same rows of its bias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The matrix.
    pub tensor: String,
    /// The vector that is added, when there is one.
    pub bias: Option<String>,
    /// Rows.
    pub rows: Range<usize>,
    /// Columns, whole blocks.
    pub columns: Range<usize>,
    /// Columns of the whole tensor.
    pub tensor_columns: usize,
}

impl Shards {
    /// Deals a model's parts; `formats` says where the blocks end.
    ///
    /// # Errors
    /// More ranks than there is to deal.
    pub fn new(config: &ModelConfig, place: Place, formats: &WeightFormats<'_>) -> Result<Self, LoadError> {
        let Place { tensor_rank: rank, tensor_size: size, .. } = place;
        check_size(config, place)?;
        let query_heads = deal(config.num_heads, 1, size, rank);
        let group_size = config.group_size();
        let kv_heads = query_heads.start / group_size..query_heads.end.div_ceil(group_size);
        let heads = Heads {
            num_heads: query_heads.len(),
            num_kv_heads: kv_heads.len(),
            head_dim: config.head_dim,
            group_size,
            group_offset: query_heads.start % group_size,
        };
        let attention_block = longest_block(config, formats, TensorKind::AttentionOutput);
        let head_columns = query_heads.start * config.head_dim..query_heads.end * config.head_dim;
        let mlp_block = longest_block(config, formats, TensorKind::MlpOutput);
        let unit = unit_that_serves_all(config.intermediate_size, TILE.max(mlp_block), size);
        let vocab_unit = unit_that_serves_all(config.vocab_size, TILE, size);
        Ok(Self {
            place,
            layers: span(config, place.num_stages, place.stage),
            query_heads,
            kv_heads,
            heads,
            attention_columns: Columns::new(head_columns, attention_block),
            mlp_columns: Columns::new(deal(config.intermediate_size, unit, size, rank), mlp_block),
            vocab: deal(config.vocab_size, vocab_unit, size, rank),
        })
    }
}

fn check_size(config: &ModelConfig, place: Place) -> Result<(), LoadError> {
    let Place { tensor_rank, tensor_size, stage, num_stages } = place;
    assert!(tensor_rank < tensor_size && stage < num_stages, "a place inside its mesh");
    if config.num_heads < tensor_size {
        return Err(LoadError::Layout(format!(
            "--tensor-parallel-size {tensor_size} is more than the model's {} query heads: lower it to {} or less",
            config.num_heads, config.num_heads
        )));
    }
    if config.intermediate_size.min(config.vocab_size) < tensor_size {
        return Err(LoadError::Layout(format!(
            "--tensor-parallel-size {tensor_size} is more than this tiny model's MLP or vocabulary can be dealt to"
        )));
    }
    if config.num_layers < num_stages {
        return Err(LoadError::Layout(format!(
            "--pipeline-parallel-size {num_stages} is more than the model's {} layers: lower it to {} or less",
            config.num_layers, config.num_layers
        )));
    }
    Ok(())
}

/// Formats may differ from layer to layer; the longest block covers the others, as each length divides the next.
fn longest_block(config: &ModelConfig, formats: &WeightFormats<'_>, kind: TensorKind) -> usize {
    let tensors = architectures::tensors(config);
    let lengths = tensors
        .iter()
        .filter(|tensor| tensor.kind == kind)
        .map(|tensor| formats.block_len(&tensor.name, tensor.columns));
    lengths.max().unwrap_or(1)
}

/// The layers of stage `stage`: the output matrix is worth some layers of work to the last stage, and the embedding,
/// which costs memory but no time, decides who gets the odd layer.
fn span(config: &ModelConfig, num_stages: usize, stage: usize) -> Range<usize> {
    if num_stages == 1 {
        return 0..config.num_layers;
    }
    let last = layers_of_last_stage(config, num_stages);
    let others = config.num_layers - last;
    if stage + 1 == num_stages {
        return others..config.num_layers;
    }
    // The first stage has the embedding, so extra layers go to those behind it.
    let counts = |stage: usize| deal(others, 1, num_stages - 1, num_stages - 2 - stage).len();
    let start = (0..stage).map(counts).sum();
    start..start + counts(stage)
}

/// How many layers leave the slowest stage fastest, the last one ending in the output matrix.
fn layers_of_last_stage(config: &ModelConfig, num_stages: usize) -> usize {
    let attention = 2 * config.q_width() + 2 * config.kv_width();
    let layer = (config.hidden_size * (attention + 3 * config.intermediate_size)) as f64;
    let output = (config.hidden_size * config.vocab_size) as f64 / layer;
    let slowest = |last: usize| {
        let others = (config.num_layers - last).div_ceil(num_stages - 1) as f64;
        others.max(last as f64 + output)
    };
    let most = config.num_layers - (num_stages - 1);
    // Of equals the one with most layers, which leaves the others the most memory.
    (1..=most)
        .rev()
        .min_by(|a, b| slowest(*a).total_cmp(&slowest(*b)))
        .expect("there is a layer for each stage")
}

#[cfg(test)]
mod tests {
    use phalanx_device::Format;

    use super::*;
    use crate::catalogue;

    fn shards(size: &str, tensor_size: usize, num_stages: usize, format: Format) -> Vec<Shards> {
        let models = catalogue::qwen2_5();
        let (_, config) = models.iter().find(|(name, _)| name.contains(size)).unwrap();
        let formats = WeightFormats::Uniform(format);
        Place::all(tensor_size, num_stages)
            .map(|place| Shards::new(config, place, &formats).unwrap())
            .collect()
    }

    #[test]
    fn the_7b_model_over_three_ranks() {
        let ranks = shards("-7B", 3, 1, Format::BF16);
        let heads: Vec<_> = ranks.iter().map(|rank| rank.query_heads.clone()).collect();
        assert_eq!(heads, [0..10, 10..19, 19..28]);
        let kv: Vec<_> = ranks.iter().map(|rank| rank.kv_heads.clone()).collect();
        assert_eq!(kv, [0..2, 1..3, 2..4]);
        let offsets: Vec<_> = ranks.iter().map(|rank| rank.heads.group_offset).collect();
        assert_eq!(offsets, [0, 3, 5]);
        let columns: Vec<_> = ranks.iter().map(|rank| rank.mlp_columns.own.len()).collect();
        assert_eq!(columns, [6336, 6336, 6272]);
    }

    #[test]
    fn each_query_head_reads_the_kv_head_it_reads_in_the_whole_model() {
        for size in ["0.5B", "1.5B", "-7B", "14B", "32B", "72B"] {
            for tensor_size in 1..=8 {
                for rank in shards(size, tensor_size, 1, Format::BF16) {
                    for (local, head) in rank.query_heads.clone().enumerate() {
                        let whole = head / rank.heads.group_size;
                        assert_eq!(
                            rank.kv_heads.start + rank.heads.kv_head(local),
                            whole,
                            "{size} {tensor_size}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn columns_are_dealt_once_and_covered_by_whole_blocks() {
        for format in [Format::BF16, Format::Q8_0, Format::Q4K] {
            for tensor_size in 1..=8 {
                let ranks = shards("32B", tensor_size, 1, format);
                let block = format.block_len();
                for columns in
                    [|rank: &Shards| rank.attention_columns.clone(), |rank: &Shards| rank.mlp_columns.clone()]
                {
                    let mut end = 0;
                    for columns in ranks.iter().map(columns) {
                        assert_eq!(columns.own.start, end);
                        end = columns.own.end;
                        assert!(
                            columns.cover.start.is_multiple_of(block)
                                && columns.cover.end.is_multiple_of(block)
                        );
                        assert!(
                            columns.cover.start <= columns.own.start && columns.own.end <= columns.cover.end
                        );
                        assert_eq!(columns.own_in_cover().len(), columns.own.len());
                    }
                    assert!(end == 5120 || end == 27_648);
                }
                assert_eq!(ranks.last().unwrap().vocab.end, 152_064);
            }
        }
    }

    #[test]
    fn the_output_matrix_spares_the_last_stage_some_layers() {
        let lengths = |size, stages| -> Vec<usize> {
            shards(size, 1, stages, Format::BF16).iter().map(|stage| stage.layers.len()).collect()
        };
        assert_eq!(lengths("-7B", 2), [15, 13]);
        assert_eq!(lengths("-7B", 4), [7, 8, 8, 5]);
        assert_eq!(lengths("72B", 4), [20, 20, 21, 19]);
        // The 0.5B model's output matrix is worth nine layers.
        assert_eq!(lengths("0.5B", 2), [17, 7]);
    }
}
