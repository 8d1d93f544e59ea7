//! A rank's keys and values: one allocation, two tensors a layer of its stage.

use phalanx_device::backend::KvLayer;
use phalanx_device::{Arena, DType, Device, DeviceError};
use phalanx_model::Shards;
use phalanx_model::memory::kv_shape;

/// How large the KV cache is; the same on every rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCacheSpec {
    /// What keys and values are kept in.
    pub dtype: DType,
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// Tokens a block holds.
    pub block_size: usize,
}

/// The KV cache of the layers and heads of `shards`; as many bytes as `phalanx_model::MemoryPlan::kv_bytes` says.
pub(crate) fn allocate(
    device: &Device,
    shards: &Shards,
    spec: KvCacheSpec,
) -> Result<Vec<KvLayer>, DeviceError> {
    let KvCacheSpec { dtype, num_blocks, block_size } = spec;
    let (num_layers, num_kv_heads, head_dim) = kv_shape(shards);
    // [num_blocks, num_kv_heads, block_size, head_dim], flattened to rows of a head.
    let rows = num_blocks * num_kv_heads * block_size;
    let mut arena = device.arena(2 * num_layers * Arena::tensor_bytes(dtype, rows, head_dim))?;
    let mut tensor = || arena.tensor(dtype, rows, head_dim);
    let layers =
        (0..num_layers).map(|_| KvLayer { keys: tensor(), values: tensor(), num_blocks, block_size });
    Ok(layers.collect())
}
