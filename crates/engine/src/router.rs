//! Several replicas behind one door: each request goes where the least is left to compute before it is done, which an
//! engine's cache of its beginning makes less.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::handle::EngineHandle;
use crate::known::{BlockName, Known, Namer};
use crate::output::RequestError;
use crate::request::Request;
use crate::shared::Health;
use crate::stream::EventStream;

/// An engine whose step has been out for this long gets no request while another's has not.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// Data parallelism: engines that serve the same model, of which there is at least one.
#[derive(Clone, Debug)]
pub struct Router {
    engines: Vec<EngineHandle>,
    stuck_after: Duration,
    namer: Namer,
    known: Arc<Mutex<Known>>,
}

impl From<EngineHandle> for Router {
    fn from(engine: EngineHandle) -> Self {
        Self::new(vec![engine])
    }
}

/// What a request would meet at one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    /// Which engine.
    engine: usize,
    /// See [`EngineHandle::outstanding_tokens`].
    outstanding_tokens: usize,
    /// Tokens of the request's prompt that it has computed.
    known_tokens: usize,
    /// Requests it has been given.
    routed_requests: u64,
}

/// The engines to ask, best first: where the sum is least of what its requests were expected to need and of this
/// prompt's tokens that are not known there. A beginning known to a busy engine is thus worth exactly the tokens
/// that it spares; among equals requests go round.
fn order(prompt_len: usize, candidates: &[Candidate]) -> Vec<Candidate> {
    let mut order = candidates.to_vec();
    order.sort_by_key(|candidate| {
        let own = prompt_len.saturating_sub(candidate.known_tokens);
        (candidate.outstanding_tokens + own, candidate.routed_requests, candidate.engine)
    });
    order
}

/// Engines that may get requests, by their health: the living, less those that hang while others do not.
fn usable(healths: &[Health], stuck_after: Duration) -> Vec<usize> {
    let alive = |engine: &usize| healths[*engine].alive();
    let stuck = |engine: &usize| healths[*engine].busy && stuck_after < healths[*engine].last_step_age;
    let living: Vec<usize> = (0..healths.len()).filter(alive).collect();
    let moving: Vec<usize> = living.iter().copied().filter(|engine| !stuck(engine)).collect();
    if moving.is_empty() { living } else { moving }
}

impl Router {
    /// Routes over `engines`, of which there is at least one.
    #[must_use]
    pub fn new(engines: Vec<EngineHandle>) -> Self {
        assert!(!engines.is_empty(), "a router has at least one engine");
        // One engine has no choice to be remembered.
        let pool = |engine: &EngineHandle| if engines.len() < 2 { 0 } else { engine.prefix_blocks() };
        let pools: Vec<usize> = engines.iter().map(pool).collect();
        let (namer, known) = (Namer::new(engines[0].block_size()), Known::new(&pools));
        Self { engines, stuck_after: STUCK_AFTER, namer, known: Arc::new(Mutex::new(known)) }
    }

    /// The same, with engines taken for stuck when a step of theirs has been out for longer than `stuck_after`.
    #[must_use]
    pub fn stuck_after(self, stuck_after: Duration) -> Self {
        Self { stuck_after, ..self }
    }

    /// The engines, for health and metrics, in the order given.
    #[must_use]
    pub fn engines(&self) -> &[EngineHandle] {
        &self.engines
    }

    /// Submits to the engine whose requests need the fewest tokens ([`EngineHandle::outstanding_tokens`]), this prompt
    /// included as far as that engine does not know it; when that one is full, to the next. Dead engines get nothing,
    /// stuck ones only when all are.
    ///
    /// # Errors
    /// As [`EngineHandle::submit`]; overloaded when all living engines are.
    pub fn submit(&self, request: Request) -> Result<EventStream, RequestError> {
        let names = match self.engines.len() {
            1 => Vec::new(),
            // What is longer than a sequence may be is refused in a moment, and not worth names.
            _ => {
                let named = request.prompt.len().min(self.max_model_len());
                self.namer.names(&request.prompt[..named], request.cache_salt.as_deref())
            }
        };
        let order = order(request.prompt.len(), &self.candidates(&names));
        // With no engine alive the first one says why.
        let Some((last, others)) = order.split_last() else { return self.engines[0].submit(request) };
        // A prompt's last token is always computed.
        let spared =
            |candidate: &Candidate| candidate.known_tokens.min(request.prompt.len().saturating_sub(1));
        for candidate in others {
            match self.engines[candidate.engine].offer(request.clone(), spared(candidate)) {
                Err(RequestError::Overloaded(_) | RequestError::EngineGone(_)) => {}
                Err(error) => return Err(error),
                Ok(stream) => {
                    self.note(candidate.engine, &names, spared(candidate));
                    return Ok(stream);
                }
            }
        }
        let spared = spared(last);
        let stream = self.engines[last.engine].submit_spared(request, spared)?;
        self.note(last.engine, &names, spared);
        Ok(stream)
    }

    fn candidates(&self, names: &[BlockName]) -> Vec<Candidate> {
        let healths: Vec<Health> = self.engines.iter().map(EngineHandle::health).collect();
        let known = self.known();
        let candidate = |engine: usize| Candidate {
            engine,
            outstanding_tokens: self.engines[engine].outstanding_tokens(),
            known_tokens: self.namer.tokens(known.blocks(engine, names)),
            routed_requests: self.engines[engine].routed_requests(),
        };
        usable(&healths, self.stuck_after).into_iter().map(candidate).collect()
    }

    fn note(&self, engine: usize, names: &[BlockName], spared: usize) {
        self.known().note(engine, names);
        self.engines[engine].note_routed(spared);
    }

    /// A panic elsewhere leaves the record whole enough: it is a guess at all times.
    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether at least one engine is alive.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.engines.iter().any(|engine| engine.health().alive())
    }

    /// Tokens of the longest sequence.
    #[must_use]
    pub fn max_model_len(&self) -> usize {
        self.engines[0].max_model_len()
    }

    /// Shuts all engines down at the same time; see [`EngineHandle::shutdown`].
    pub fn shutdown(&self, grace: Duration) -> bool {
        std::thread::scope(|scope| {
            let engines = self.engines.iter();
            let waiting: Vec<_> = engines.map(|engine| scope.spawn(move || engine.shutdown(grace))).collect();
            waiting.into_iter().all(|thread| thread.join().expect("a shutdown does not panic"))
        })
    }
}

#[cfg(test)]
mod tests {
    use phalanx_scheduler::step::TokenId;

    use super::*;
    use crate::shared::Lifecycle;

    fn candidate(engine: usize, outstanding_tokens: usize, known_tokens: usize, routed: u64) -> Candidate {
        Candidate { engine, outstanding_tokens, known_tokens, routed_requests: routed }
    }

    #[test]
    fn the_best_trade_of_known_tokens_against_outstanding_ones() {
        /// Outstanding, known and routed.
        type Engine = (usize, usize, u64);
        // The prompt's length, the engines, then the order to ask them in.
        let cases: [(usize, &[Engine], &[usize]); 7] = [
            (100, &[(0, 0, 0), (0, 0, 0)], &[0, 1]),
            (100, &[(0, 0, 5), (0, 0, 4)], &[1, 0]),
            (100, &[(50, 0, 0), (20, 0, 9)], &[1, 0]),
            (1000, &[(0, 0, 0), (600, 704, 0)], &[1, 0]),
            (1000, &[(0, 0, 0), (800, 704, 0)], &[0, 1]),
            (1000, &[(10, 0, 0), (5, 0, 0), (900, 992, 0)], &[2, 1, 0]),
            // More known than asked is not less than nothing to do.
            (10, &[(1, 64, 0), (0, 0, 0)], &[0, 1]),
        ];
        for (prompt_len, engines, expected) in cases {
            let candidates: Vec<_> = engines
                .iter()
                .enumerate()
                .map(|(engine, &(outstanding, known, routed))| candidate(engine, outstanding, known, routed))
                .collect();
            let found: Vec<usize> =
                order(prompt_len, &candidates).iter().map(|chosen| chosen.engine).collect();
            assert_eq!(found, expected, "{prompt_len} {engines:?}");
        }
    }

    #[test]
    fn the_dead_get_nothing_and_the_stuck_only_when_all_are() {
        let health = |lifecycle: Lifecycle, busy: bool, age: u64| Health {
            lifecycle,
            busy,
            last_step_age: Duration::from_secs(age),
        };
        let well = health(Lifecycle::Running, true, 1);
        let idle = health(Lifecycle::Running, false, 9999);
        let stuck = health(Lifecycle::Running, true, 31);
        let dead = health(Lifecycle::Dead("lost".to_owned()), true, 1);
        let found = |healths: &[&Health]| {
            let healths: Vec<Health> = healths.iter().map(|health| (*health).clone()).collect();
            usable(&healths, STUCK_AFTER)
        };
        assert_eq!(found(&[&well, &stuck, &idle, &dead]), [0, 2]);
        assert_eq!(found(&[&stuck, &dead]), [0]);
        assert_eq!(found(&[&dead]), [] as [usize; 0]);
    }

    /// Engines of a simulation: what runs on each, and the record over them.
    struct World {
        namer: Namer,
        known: Known,
        running: Vec<Vec<usize>>,
        routed: Vec<u64>,
        dead: Option<usize>,
    }

    impl World {
        fn new(engines: usize, pool: usize) -> Self {
            Self {
                namer: Namer::new(16),
                known: Known::new(&vec![pool; engines]),
                running: vec![Vec::new(); engines],
                routed: vec![0; engines],
                dead: None,
            }
        }

        fn load(&self, engine: usize) -> usize {
            self.running[engine].iter().sum()
        }

        /// Routes a prompt and returns its engine.
        fn route(&mut self, prompt: &[TokenId], answer_len: usize) -> usize {
            let names = self.namer.names(prompt, None);
            let alive = (0..self.running.len()).filter(|engine| Some(*engine) != self.dead);
            let candidates: Vec<_> = alive
                .map(|engine| {
                    let known = self.namer.tokens(self.known.blocks(engine, &names));
                    candidate(engine, self.load(engine), known, self.routed[engine])
                })
                .collect();
            let order = order(prompt.len(), &candidates);
            assert_eq!(order.len(), candidates.len(), "every engine can be asked");
            let Candidate { engine, known_tokens, .. } = order[0];
            self.known.note(engine, &names);
            self.running[engine].push(prompt.len().saturating_sub(known_tokens) + answer_len);
            self.routed[engine] += 1;
            engine
        }
    }

    #[test]
    fn load_stays_balanced_when_all_share_one_prefix() {
        for seed in 0..5 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut world = World::new(4, 4096);
            let shared: Vec<TokenId> = (0..1600).collect();
            let own =
                |random: &mut fastrand::Rng| (0..random.usize(1..200)).map(|_| random.u32(..)).collect();
            let longest = 1600 + 200 + 256;
            for _ in 0..400 {
                let prompt = [shared.clone(), own(&mut random)].concat();
                world.route(&prompt, random.usize(1..=256));
                let engine = random.usize(..4);
                if 8 < world.running[engine].len() {
                    let done = random.usize(..world.running[engine].len());
                    world.running[engine].swap_remove(done);
                }
            }
            // At most what makes a detour around the known prefix worth it, and one request.
            let loads: Vec<usize> = (0..4).map(|engine| world.load(engine)).collect();
            let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
            assert!(most - least <= 1600 + longest, "seed {seed}: {loads:?}");
            assert!(world.routed.iter().all(|routed| 40 < *routed), "seed {seed}: {:?}", world.routed);
        }
    }

    #[test]
    fn a_conversation_stays_where_it_is_known() {
        for seed in 0..5 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut world = World::new(3, 1 << 14);
            let mut conversations: Vec<(Vec<TokenId>, Option<usize>)> =
                (0..12).map(|_| ((0..600).map(|_| random.u32(..)).collect(), None)).collect();
            for turn in 0..200 {
                let place = random.usize(..conversations.len());
                let (prompt, home) = &mut conversations[place];
                let engine = world.route(prompt, 100);
                assert!(home.is_none_or(|home| home == engine), "seed {seed}, turn {turn}");
                *home = Some(engine);
                // The answer and the next question.
                prompt.extend((0..150).map(|_| random.u32(..)));
                // No two turns run at the same time: load gives no reason to move.
                world.running[engine].clear();
            }
            let homes: std::collections::HashSet<_> = conversations.iter().map(|(_, home)| *home).collect();
            assert_eq!(homes.len(), 3, "seed {seed}: conversations are spread");
        }
    }

    #[test]
    fn neither_a_forgotten_prefix_nor_a_dead_engine_loses_a_request() {
        let mut random = fastrand::Rng::with_seed(3);
        // Pools of ten blocks: nearly all is forgotten at once.
        let mut world = World::new(3, 10);
        for request in 0..600 {
            let shared: Vec<TokenId> = (0..random.u32(0..400)).collect();
            world.dead = match request {
                0..200 => None,
                _ => Some(request / 200),
            };
            let engine = world.route(&shared, 10);
            assert_ne!(Some(engine), world.dead);
        }
        assert_eq!(world.routed.iter().sum::<u64>(), 600);
        assert!(world.routed.iter().all(|routed| 100 < *routed), "{:?}", world.routed);
    }
}
