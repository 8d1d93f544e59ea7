//! The kernels' parameter structs and launchers, twins of those in `cuda/*.cu`; sizes are asserted on both sides.

use std::ffi::c_int;

use crate::dtype::DType;

/// A compute type; the twin of `Element` in cuda/common/element.cuh.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Element {
    BF16 = 0,
    F16 = 1,
}

impl Element {
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::BF16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

/// What `convert` reads.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    F32 = 0,
    F16 = 1,
    BF16 = 2,
}

/// Where and how to launch.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch {
    pub(crate) stream: usize,
    pub(crate) overlaps: u32,
    pub(crate) multiprocessors: u32,
}

#[repr(C)]
pub(crate) struct TokenIdsParams {
    pub(crate) out: usize,
    pub(crate) ids: usize,
    pub(crate) sampled: usize,
    pub(crate) tokens: u32,
    pub(crate) padding: u32,
}

#[repr(C)]
pub(crate) struct EmbedParams {
    pub(crate) out: usize,
    pub(crate) ids: usize,
    pub(crate) table: usize,
    pub(crate) tokens: u32,
    pub(crate) rows: u32,
    pub(crate) width: u32,
    pub(crate) out_stride: u32,
    pub(crate) ids_stride: u32,
    pub(crate) first_id: i32,
}

#[repr(C)]
pub(crate) struct RmsNormParams {
    pub(crate) out: usize,
    pub(crate) residual: usize,
    pub(crate) x: usize,
    pub(crate) weight: usize,
    pub(crate) rows: u32,
    pub(crate) width: u32,
    pub(crate) out_stride: u32,
    pub(crate) residual_stride: u32,
    pub(crate) x_stride: u32,
    pub(crate) eps: f32,
}

#[repr(C)]
pub(crate) struct SkinnyMatmulParams {
    pub(crate) out: usize,
    pub(crate) x: usize,
    pub(crate) weight: usize,
    pub(crate) bias: usize,
    pub(crate) tokens: u32,
    pub(crate) rows: u32,
    pub(crate) columns: u32,
    pub(crate) x_stride: u32,
    pub(crate) out_stride: u32,
    pub(crate) out_is_float: u32,
    pub(crate) silu: u32,
    pub(crate) padding: u32,
}

#[repr(C)]
pub(crate) struct SiluMulParams {
    pub(crate) out: usize,
    pub(crate) gate_up: usize,
    pub(crate) rows: u32,
    pub(crate) width: u32,
    pub(crate) out_stride: u32,
    pub(crate) gate_up_stride: u32,
}

#[repr(C)]
pub(crate) struct GatherRowsParams {
    pub(crate) out: usize,
    pub(crate) x: usize,
    pub(crate) rows: usize,
    pub(crate) count: u32,
    pub(crate) row_bytes: u32,
    pub(crate) out_stride_bytes: u32,
    pub(crate) x_stride_bytes: u32,
}

#[repr(C)]
pub(crate) struct ConvertParams {
    pub(crate) out: usize,
    pub(crate) from: usize,
    pub(crate) count: u64,
}

#[repr(C)]
pub(crate) struct NoiseParams {
    pub(crate) out: usize,
    pub(crate) key: u64,
    pub(crate) first: u64,
    pub(crate) tensor_columns: u64,
    pub(crate) rows: u32,
    pub(crate) columns: u32,
    pub(crate) spread: f32,
    pub(crate) stored: Source,
}

#[repr(C)]
pub(crate) struct RopeAndStoreParams {
    pub(crate) qkv: usize,
    pub(crate) keys: usize,
    pub(crate) values: usize,
    pub(crate) rope: usize,
    pub(crate) positions: usize,
    pub(crate) slots: usize,
    pub(crate) tokens: u32,
    pub(crate) qkv_stride: u32,
    pub(crate) num_heads: u32,
    pub(crate) num_kv_heads: u32,
    pub(crate) head_dim: u32,
    pub(crate) block_size: u32,
    pub(crate) rope_stride: u32,
    pub(crate) padding: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionParams {
    pub(crate) out: usize,
    pub(crate) qkv: usize,
    pub(crate) keys: usize,
    pub(crate) values: usize,
    pub(crate) items: usize,
    pub(crate) arrays: usize,
    pub(crate) num_items: usize,
    pub(crate) partial_outs: usize,
    pub(crate) partial_stats: usize,
    pub(crate) counters: usize,
    pub(crate) grid_items: u32,
    pub(crate) out_stride: u32,
    pub(crate) qkv_stride: u32,
    pub(crate) num_heads: u32,
    pub(crate) num_kv_heads: u32,
    pub(crate) group_size: u32,
    pub(crate) group_offset: u32,
    pub(crate) block_shift: u32,
    pub(crate) head_dim: u32,
    pub(crate) scale: f32,
}

/// One row's way to a token; the twin of `SampleRow` in cuda/sample.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct SampleRow {
    pub(crate) uniform: f64,
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    pub(crate) min_p: f32,
    pub(crate) repetition_penalty: f32,
    pub(crate) presence_penalty: f32,
    pub(crate) frequency_penalty: f32,
    pub(crate) top_k: u32,
    pub(crate) logprobs: i32,
    pub(crate) first_edit: u32,
    pub(crate) num_edits: u32,
    pub(crate) first_seen: u32,
    pub(crate) num_seen: u32,
}

/// What came of a row; the twin of `SampleResult`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct SampleResult {
    pub(crate) token: u32,
    pub(crate) finite: u32,
    pub(crate) logit: f32,
    pub(crate) largest: f32,
    pub(crate) mass: u64,
}

#[repr(C)]
pub(crate) struct SampleParams {
    pub(crate) logits: usize,
    pub(crate) rows: usize,
    pub(crate) edits: usize,
    pub(crate) seen: usize,
    pub(crate) originals: usize,
    pub(crate) results: usize,
    pub(crate) tops: usize,
    pub(crate) tokens: usize,
    pub(crate) count: u32,
    pub(crate) stride: u32,
    pub(crate) vocab: u32,
    pub(crate) max_top: u32,
    pub(crate) num_edits: u32,
    pub(crate) padding: u32,
}

const _: () = {
    assert!(size_of::<Launch>() == 16);
    assert!(size_of::<TokenIdsParams>() == 32);
    assert!(size_of::<EmbedParams>() == 48);
    assert!(size_of::<RmsNormParams>() == 56);
    assert!(size_of::<SkinnyMatmulParams>() == 64);
    assert!(size_of::<SiluMulParams>() == 32);
    assert!(size_of::<GatherRowsParams>() == 40);
    assert!(size_of::<ConvertParams>() == 24);
    assert!(size_of::<NoiseParams>() == 48);
    assert!(size_of::<RopeAndStoreParams>() == 80);
    assert!(size_of::<AttentionParams>() == 120);
    assert!(size_of::<SampleRow>() == 56);
    assert!(size_of::<SampleResult>() == 24);
    assert!(size_of::<SampleParams>() == 88);
};

// Every launcher returns a cudaError_t. The addresses in the parameters must lie in memory of the stream's device and
// span the shapes the parameters state: `Device` has checked the shapes, and views keep their memory alive.
unsafe extern "C" {
    pub(crate) fn launch_token_ids(params: TokenIdsParams, launch: Launch) -> c_int;
    pub(crate) fn launch_embed(params: EmbedParams, element: Element, launch: Launch) -> c_int;
    pub(crate) fn launch_rms_norm(params: RmsNormParams, element: Element, launch: Launch) -> c_int;
    pub(crate) fn launch_skinny_matmul(params: SkinnyMatmulParams, element: Element, launch: Launch)
    -> c_int;
    pub(crate) fn launch_silu_mul(params: SiluMulParams, element: Element, launch: Launch) -> c_int;
    pub(crate) fn launch_gather_rows(params: GatherRowsParams, launch: Launch) -> c_int;
    pub(crate) fn launch_convert(
        params: ConvertParams,
        source: Source,
        element: Element,
        launch: Launch,
    ) -> c_int;
    pub(crate) fn launch_noise(params: NoiseParams, element: Element, launch: Launch) -> c_int;
    pub(crate) fn launch_rope_and_store(
        params: RopeAndStoreParams,
        element: Element,
        launch: Launch,
    ) -> c_int;
    pub(crate) fn launch_attention(params: AttentionParams, element: Element, launch: Launch) -> c_int;
    pub(crate) fn launch_attention_hopper(params: AttentionParams, element: Element, launch: Launch)
    -> c_int;
    pub(crate) fn launch_sample(params: SampleParams, launch: Launch) -> c_int;
}
