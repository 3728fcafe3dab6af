//! What is done to the queue and to its shadow, at random.

use super::{HOUR, SITES};
use proptest::prelude::*;

/// One thing done to both.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Insert { recipients: usize, tenant: u16, len: u32, null_path: bool, age_ms: u64, recovered: Option<u8> },
    Route { how: u8, times: usize },
    Unpark(usize),
    Pick { site: u32, max: usize },
    Unpick { which: usize, lease: bool },
    Settle { which: usize, verdict: u8 },
    StaleSettle { which: usize, verdict: u8 },
    Operate { which: usize, act: u8, domain: Option<u8> },
    Suspend(u32),
    HoldAll,
    Jump(u64),
    WallJump(u64),
    Sweep { site: u32, budget: usize },
}

/// Any of them, by weights.
pub(super) fn op() -> impl Strategy<Value = Op> {
    let index = any::<usize>();
    let age = prop_oneof![3 => Just(0), 1 => 0..6 * HOUR, 1 => 0..200 * HOUR];
    let insert = (1..5usize, 0..3u16, 0..300_000u32, any::<bool>(), age, prop::option::weighted(0.3, any::<u8>()));
    let jump = prop_oneof![4 => 0..60_000u64, 3 => 0..5 * HOUR, 1 => 0..80 * HOUR];
    prop_oneof![
        6 => insert.prop_map(|(recipients, tenant, len, null_path, age_ms, recovered)| {
            Op::Insert { recipients, tenant, len, null_path, age_ms, recovered }
        }),
        8 => (any::<u8>(), 1..6usize).prop_map(|(how, times)| Op::Route { how, times }),
        2 => index.prop_map(Op::Unpark),
        8 => (0..SITES, 0..4usize).prop_map(|(site, max)| Op::Pick { site, max }),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(which, lease)| Op::Unpick { which, lease }),
        8 => (any::<usize>(), any::<u8>()).prop_map(|(which, verdict)| Op::Settle { which, verdict }),
        1 => (any::<usize>(), any::<u8>()).prop_map(|(which, verdict)| Op::StaleSettle { which, verdict }),
        3 => (any::<usize>(), 0..4u8, prop::option::of(0..2u8))
            .prop_map(|(which, act, domain)| Op::Operate { which, act, domain }),
        1 => (0..SITES).prop_map(Op::Suspend),
        1 => Just(Op::HoldAll),
        4 => jump.prop_map(Op::Jump),
        1 => (0..400 * HOUR).prop_map(Op::WallJump),
        2 => (0..SITES, 1..8usize).prop_map(|(site, budget)| Op::Sweep { site, budget }),
    ]
}
