//! What is said when a model, or a sequence of the asked length, does not fit on the GPUs: what is asked, what there
//! is, who holds the rest, and what to change. From plain numbers, so that every sentence can be tested.

use phalanx_device::facts::{Holder, Known};
use phalanx_model::layout::MOST_IN_A_GROUP;
use phalanx_model::memory::{self, MemoryPlan};
use phalanx_model::{MemoryRequest, ModelConfig};
use phalanx_worker::Mesh;

use crate::args::EngineArgs;
use crate::doctor::gpus::who;
use crate::plan::gib;
use crate::{cards, gpu};

/// Everything the answer is made from.
pub(crate) struct NoRoom {
    /// What the fullest rank needs beside its KV cache.
    pub(crate) needed: Needed,
    /// What a rank may use: the least over the cards.
    pub(crate) budget: usize,
    /// `--gpu-memory-utilization`.
    pub(crate) share: f64,
    /// The cards of the layout.
    pub(crate) cards: Vec<CardRoom>,
    /// Tokens a sequence shall have, and tokens that the KV cache could hold.
    pub(crate) asked_tokens: usize,
    pub(crate) held_tokens: usize,
    /// Tensor parallel sizes that were tried, ascending, and tokens that the KV cache could hold with each.
    pub(crate) larger: Vec<(usize, usize)>,
    /// GPUs of this machine.
    pub(crate) gpus: usize,
    /// Replicas, and stages of each.
    pub(crate) replicas: usize,
    pub(crate) num_stages: usize,
}

/// A rank's fixed costs, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needed {
    pub(crate) weights: usize,
    /// Activations of the largest step, and the table of positions.
    pub(crate) workspace: usize,
    /// Left free for libraries and kernels.
    pub(crate) margin: usize,
    /// Keys and values of one token.
    pub(crate) kv_per_token: usize,
}

/// One card, and who holds what of it.
pub(crate) struct CardRoom {
    pub(crate) ordinal: usize,
    pub(crate) total: usize,
    pub(crate) free: usize,
    /// Ranks that share it.
    pub(crate) ranks: usize,
    pub(crate) holders: Known<Vec<Holder>>,
}

/// The layout that has no room, and what it was planned from.
pub(crate) struct Attempt<'a> {
    pub(crate) config: &'a ModelConfig,
    pub(crate) mesh: Mesh,
    pub(crate) request: &'a MemoryRequest<'a>,
    pub(crate) plans: &'a [MemoryPlan],
    /// What a rank may use, and what is kept free of that.
    pub(crate) budget: usize,
    pub(crate) margin: usize,
    /// KV blocks that sequences cannot have.
    pub(crate) scratch_blocks: usize,
}

impl Attempt<'_> {
    /// How many KV blocks the fullest GPU has room for beside everything else.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks_of(self.plans)
    }

    /// The same for another layout on cards like these.
    fn blocks_of(&self, plans: &[MemoryPlan]) -> usize {
        let available = self.budget.saturating_sub(self.margin);
        let fewest = memory::fullest(plans, available);
        fewest.map_or(0, |(_, blocks)| blocks.saturating_sub(self.scratch_blocks))
    }

    /// Looks around, and says what is wrong and what would help.
    pub(crate) fn explain(&self, args: &EngineArgs) -> String {
        let Self { config, mesh, request, plans, budget, margin, .. } = self;
        let held = |plans: &[MemoryPlan]| self.blocks_of(plans) * request.block_size;
        let larger = (mesh.tensor_size + 1..=MOST_IN_A_GROUP).filter_map(|size| {
            let plans = memory::plan_layout(config, size, mesh.num_stages, request).ok()?;
            Some((size, held(&plans)))
        });
        let ranks = mesh.tensor_size * mesh.num_stages * args.replicas();
        NoRoom {
            needed: Needed::of(plans, *margin),
            budget: *budget,
            share: args.gpu_memory_utilization,
            cards: gpu::of_ranks(ranks, &args.gpus).map(|gpus| cards::room(&gpus)).unwrap_or_default(),
            asked_tokens: config.max_model_len,
            held_tokens: held(plans),
            larger: larger.collect(),
            gpus: gpu::count(),
            replicas: args.replicas(),
            num_stages: mesh.num_stages,
        }
        .text()
    }
}

impl Needed {
    /// Of the rank that needs the most.
    pub(crate) fn of(plans: &[MemoryPlan], margin: usize) -> Self {
        let of = |plan: &MemoryPlan| Self {
            weights: plan.weights_bytes,
            workspace: plan.rope_bytes + plan.workspace_bytes,
            margin,
            kv_per_token: plan.kv_bytes_per_token,
        };
        plans.iter().max_by_key(|plan| plan.fixed_bytes()).map(of).unwrap_or_default()
    }

    fn fixed(self) -> usize {
        self.weights + self.workspace + self.margin
    }
}

impl NoRoom {
    /// All of it, in sentences.
    pub(crate) fn text(&self) -> String {
        let mut sentences = vec![self.shortage(), self.budget_is()];
        sentences.extend(self.others());
        sentences.push(self.remedy());
        sentences.join(". ")
    }

    fn shortage(&self) -> String {
        let Needed { weights, workspace, margin, kv_per_token } = self.needed;
        if self.held_tokens == 0 {
            return format!(
                "the model does not fit: a rank needs {} beside its KV cache ({} of weights, {} of workspace, {} kept free) \
                 and may use {} of its GPU",
                gib(self.needed.fixed()),
                gib(weights),
                gib(workspace),
                gib(margin),
                gib(self.budget)
            );
        }
        format!(
            "a sequence of {} tokens does not fit: it needs {} of KV cache on each GPU, and beside weights and workspace \
             ({}) there are {} for {} tokens",
            self.asked_tokens,
            gib(kv_per_token * self.asked_tokens),
            gib(self.needed.fixed()),
            gib(self.budget.saturating_sub(self.needed.fixed())),
            self.held_tokens
        )
    }

    /// Where the budget comes from.
    fn budget_is(&self) -> String {
        let tightest = self.cards.iter().min_by_key(|card| card.room(self.share));
        match tightest {
            None => "who holds the rest cannot be told: NVML is not there".to_owned(),
            Some(card) => format!(
                "--gpu-memory-utilization {} of GPU {}'s {} is {}, and {} of the card are in use already{}",
                self.share,
                card.ordinal,
                gib(card.total),
                gib((card.total as f64 * self.share) as usize),
                gib(card.total - card.free),
                if card.ranks == 1 {
                    String::new()
                } else {
                    format!("; {} ranks share the rest", card.ranks)
                }
            ),
        }
    }

    /// Who holds memory of the cards, this process aside.
    fn others(&self) -> Vec<String> {
        let told = |card: &CardRoom| match card.holders.as_deref() {
            Ok([]) | Err(_) => None,
            Ok(holders) => Some(format!("GPU {} is held by {}", card.ordinal, who(holders))),
        };
        self.cards.iter().filter_map(told).collect()
    }

    fn remedy(&self) -> String {
        let mut ways = Vec::new();
        if self.cards.iter().any(|card| !card.holders.as_deref().unwrap_or_default().is_empty()) {
            ways.push("end what else holds the GPU".to_owned());
        }
        if 0 < self.held_tokens {
            ways.push(format!("lower --max-model-len to {}", self.held_tokens));
        }
        let enough = self.larger.iter().find(|(_, held)| self.asked_tokens <= *held);
        let some = self.larger.iter().find(|(_, held)| 0 < *held);
        match (enough, some) {
            (Some((size, _)), _) => ways.push(self.take(*size, "")),
            (None, Some((size, held))) if self.held_tokens < *held => {
                ways.push(self.take(*size, &format!(" with --max-model-len {held}")));
            }
            _ => {}
        }
        if self.share < 0.9 {
            ways.push("raise --gpu-memory-utilization".to_owned());
        }
        if ways.is_empty() {
            ways.push("take a smaller or quantised model, or lower --max-num-batched-tokens".to_owned());
        }
        format!("To make it fit: {}", ways.join(", or "))
    }

    /// A tensor parallel size, and whether this machine has the GPUs for it: for all replicas, or for fewer.
    fn take(&self, size: usize, context: &str) -> String {
        let of_replica = size * self.num_stages;
        match self.gpus / of_replica {
            0 => format!(
                "take {of_replica} GPUs like these ({} are here) and --tensor-parallel-size {size}{}{context}",
                self.gpus,
                if self.replicas == 1 { "" } else { " --data-parallel-size 1" }
            ),
            replicas if replicas < self.replicas => {
                format!(
                    "take --tensor-parallel-size {size} and lower --data-parallel-size to {replicas}{context}"
                )
            }
            _ => format!("take --tensor-parallel-size {size}{context}"),
        }
    }
}

impl CardRoom {
    /// What a rank may use of it.
    fn room(&self, share: f64) -> usize {
        ((self.total as f64 * share) as usize).saturating_sub(self.total - self.free) / self.ranks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: usize = 1 << 30;

    fn card(ranks: usize, holders: Known<Vec<Holder>>) -> CardRoom {
        CardRoom { ordinal: 1, total: 140 * GIB, free: 39 * GIB, ranks, holders }
    }

    fn no_room() -> NoRoom {
        let holder = Holder { pid: 4711, name: Some("python3 hold.py".to_owned()), bytes: Some(100 << 30) };
        NoRoom {
            needed: Needed { weights: 14 * GIB, workspace: GIB, margin: GIB, kv_per_token: 57_344 },
            budget: 28 * GIB,
            share: 0.92,
            cards: vec![card(1, Ok(vec![holder]))],
            asked_tokens: 131_072,
            held_tokens: 0,
            larger: vec![(2, 60_000), (4, 400_000)],
            gpus: 2,
            replicas: 1,
            num_stages: 1,
        }
    }

    #[test]
    fn a_model_that_does_not_fit_is_told_with_who_holds_the_rest_and_what_would_hold_it() {
        assert_eq!(
            no_room().text(),
            "the model does not fit: a rank needs 16.0 GiB beside its KV cache (14.0 GiB of weights, 1.0 GiB of workspace, \
             1.0 GiB kept free) and may use 28.0 GiB of its GPU. --gpu-memory-utilization 0.92 of GPU 1's 140.0 GiB is \
             128.8 GiB, and 101.0 GiB of the card are in use already. GPU 1 is held by process 4711 (python3 hold.py, \
             100.0 GiB). To make it fit: end what else holds the GPU, or take 4 GPUs like these (2 are here) and --tensor-parallel-size 4"
        );
    }

    /// Qwen2.5-7B in 16 bits on cards of which 12 GiB may be used: two hold it, and a short context.
    #[test]
    fn the_smallest_size_that_holds_the_model_is_found() {
        use phalanx_device::{DType, Format};
        use phalanx_model::{Limits, WeightFormats, catalogue};

        use crate::args::{Command, parsed};

        let Command::Serve(serve) = parsed("serve") else { panic!("serve") };
        let (_, config) = catalogue::qwen2_5().into_iter().find(|(name, _)| name.contains("7B")).unwrap();
        let request = MemoryRequest {
            formats: WeightFormats::Uniform(Format::BF16),
            activation_dtype: DType::BF16,
            kv_dtype: DType::BF16,
            block_size: 64,
            limits: Limits { max_tokens: 2048, max_samples: 64, max_model_len: config.max_model_len },
        };
        let plans = memory::plan_layout(&config, 1, 1, &request).unwrap();
        let mesh = Mesh { tensor_size: 1, num_stages: 1, deadline: std::time::Duration::from_secs(1) };
        let (budget, margin) = (12 * GIB, GIB);
        let attempt = Attempt {
            config: &config,
            mesh,
            request: &request,
            plans: &plans,
            budget,
            margin,
            scratch_blocks: 1,
        };
        let text = attempt.explain(&serve.engine);
        assert!(text.contains("14.2 GiB of weights") && text.contains("may use 12.0 GiB"), "{text}");
        assert!(text.contains("take 2 GPUs like these (0 are here) and --tensor-parallel-size 2"), "{text}");
    }

    #[test]
    fn remedies_are_those_that_help() {
        let cases: [(NoRoom, &[&str], &[&str]); 7] = [
            (
                NoRoom { held_tokens: 5_000, ..no_room() },
                &[
                    "a sequence of 131072 tokens does not fit: it needs 7.0 GiB",
                    "lower --max-model-len to 5000",
                ],
                &["the model does not fit"],
            ),
            (
                NoRoom { larger: vec![(2, 200_000)], ..no_room() },
                &["take --tensor-parallel-size 2"],
                &["GPUs like these", "--max-model-len"],
            ),
            (
                NoRoom { larger: vec![(2, 60_000)], ..no_room() },
                &["take --tensor-parallel-size 2 with --max-model-len 60000"],
                &[],
            ),
            (
                NoRoom { larger: Vec::new(), cards: Vec::new(), share: 0.5, ..no_room() },
                &["raise --gpu-memory-utilization"],
                &["end what else", "held by"],
            ),
            (
                NoRoom { cards: vec![card(2, Ok(Vec::new()))], ..no_room() },
                &["in use already; 2 ranks share the rest"],
                &["held by"],
            ),
            (
                NoRoom { gpus: 8, replicas: 4, ..no_room() },
                &["take --tensor-parallel-size 4 and lower --data-parallel-size to 2"],
                &["GPUs like these"],
            ),
            (
                NoRoom { gpus: 4, num_stages: 2, ..no_room() },
                &["take 8 GPUs like these (4 are here) and --tensor-parallel-size 4"],
                &["--data-parallel-size"],
            ),
        ];
        for (case, told, not_told) in cases {
            let text = case.text();
            assert!(told.iter().all(|part| text.contains(part)), "{text}");
            assert!(!not_told.iter().any(|part| text.contains(part)), "{text}");
        }
    }
}
