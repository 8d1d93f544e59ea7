//! Parameter structs and launchers of the groups' kernels, twins of those in `cuda/{all_reduce,peers}.cu`.

use std::ffi::c_int;

use crate::cuda::kernels::{Element, Launch};

/// Ranks of a group; as in cuda/common/peers.cuh.
pub(crate) const MAX_RANKS: usize = 8;

/// Ways to sum over mailboxes and peers' memory; the twin of `Way`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Flagged = 0,
    OneShot = 1,
    TwoShot = 2,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerParams {
    pub(crate) mail: [usize; MAX_RANKS],
    pub(crate) counts: usize,
    pub(crate) words: usize,
    pub(crate) small_bytes: u64,
    pub(crate) place_bytes: u64,
    pub(crate) message_bytes: u64,
    pub(crate) deadline_ns: u64,
    pub(crate) rank: u32,
    pub(crate) size: u32,
}

#[repr(C)]
pub(crate) struct AllReduceParams {
    pub(crate) peers: PeerParams,
    pub(crate) x: usize,
    pub(crate) count: u64,
    pub(crate) dtype: u32,
    pub(crate) blocks: u32,
    pub(crate) way: Way,
    pub(crate) padding: u32,
}

#[repr(C)]
pub(crate) struct AllReduceNormParams {
    pub(crate) peers: PeerParams,
    pub(crate) out: usize,
    pub(crate) residual: usize,
    pub(crate) x: usize,
    pub(crate) weight: usize,
    pub(crate) rows: u32,
    pub(crate) width: u32,
    pub(crate) out_stride: u32,
    pub(crate) residual_stride: u32,
    pub(crate) eps: f32,
    pub(crate) padding: u32,
}

#[repr(C)]
pub(crate) struct GatherColumnsParams {
    pub(crate) peers: PeerParams,
    pub(crate) out: usize,
    pub(crate) x: usize,
    pub(crate) width: u64,
    pub(crate) out_stride: u64,
    pub(crate) x_stride: u64,
    pub(crate) rows: u32,
    pub(crate) blocks: u32,
    pub(crate) element_bytes: u32,
    pub(crate) padding: u32,
}

#[repr(C)]
pub(crate) struct HandOverParams {
    pub(crate) peers: PeerParams,
    pub(crate) x: usize,
    pub(crate) bytes: u64,
    pub(crate) peer: u32,
    pub(crate) places: u32,
}

#[repr(C)]
pub(crate) struct PatternParams {
    pub(crate) at: usize,
    pub(crate) words: u64,
    pub(crate) wrong: usize,
    pub(crate) seed: u32,
    pub(crate) padding: u32,
}

const _: () = {
    assert!(size_of::<PeerParams>() == 120);
    assert!(size_of::<AllReduceParams>() == 152);
    assert!(size_of::<AllReduceNormParams>() == 176);
    assert!(size_of::<GatherColumnsParams>() == 176);
    assert!(size_of::<HandOverParams>() == 144);
    assert!(size_of::<PatternParams>() == 32);
};

// Every launcher returns a cudaError_t. Besides what `cuda::kernels` asks of addresses: the mailboxes and counts are
// laid out as `mail` allocates them, and live until the last rank's last kernel has ended.
unsafe extern "C" {
    pub(crate) fn mail_head_bytes() -> u64;
    pub(crate) fn counts_bytes() -> u64;
    pub(crate) fn launch_all_reduce(params: AllReduceParams, launch: Launch) -> c_int;
    pub(crate) fn launch_all_reduce_norm(
        params: AllReduceNormParams,
        element: Element,
        launch: Launch,
    ) -> c_int;
    pub(crate) fn launch_gather_columns(params: GatherColumnsParams, launch: Launch) -> c_int;
    pub(crate) fn launch_send(params: HandOverParams, launch: Launch) -> c_int;
    pub(crate) fn launch_receive(params: HandOverParams, launch: Launch) -> c_int;
    pub(crate) fn launch_mark(peers: PeerParams, ended: u32, launch: Launch) -> c_int;
    pub(crate) fn launch_fill_pattern(params: PatternParams, launch: Launch) -> c_int;
    pub(crate) fn launch_compare_pattern(params: PatternParams, launch: Launch) -> c_int;
    pub(crate) fn launch_chase(params: PatternParams, launch: Launch) -> c_int;
}
