//! One answer on its way from sampled tokens to text.

use std::sync::Arc;
use std::time::Instant;

use phalanx_scheduler::step::{SequenceId, TokenId};
use phalanx_scheduler::{FinishReason, Update};
use phalanx_text::{Detokenizer, StopMatcher, Tokenizer};

use crate::output::{Delta, Finish, TokenLogprobs};
use crate::request::Request;

/// One of a request's answers.
pub(crate) struct Answer {
    pub(crate) index: usize,
    pub(crate) sequence: SequenceId,
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    stop_strings: Arc<[String]>,
    min_tokens: usize,
    /// Tokens sampled, an end token included.
    pub(crate) num_tokens: usize,
    /// Positions computed when the last scheduled step is done; 0 before the first.
    pub(crate) computed: usize,
    pub(crate) first_token: Option<Instant>,
    pub(crate) last_token: Option<Instant>,
    pub(crate) ended: bool,
}

impl Answer {
    pub(crate) fn new(
        index: usize,
        sequence: SequenceId,
        request: &Request,
        stop_strings: &Arc<[String]>,
        tokenizer: &Arc<Tokenizer>,
    ) -> Self {
        Self {
            index,
            sequence,
            detokenizer: Detokenizer::new(Arc::clone(tokenizer), request.skip_special_tokens),
            matcher: StopMatcher::new(stop_strings.to_vec(), request.stop.include_in_output),
            stop_strings: Arc::clone(stop_strings),
            min_tokens: request.stop.min_tokens,
            num_tokens: 0,
            computed: 0,
            first_token: None,
            last_token: None,
            ended: false,
        }
    }

    /// Takes a step's token. A stop string met by its text ends the answer whatever the scheduler says; then the
    /// caller must end the sequence.
    pub(crate) fn push(&mut self, token: TokenId, update: Update) -> Delta {
        self.num_tokens += 1;
        let mut piece = match update.finish {
            // An end token steers; it is not text, even when special tokens are shown.
            Some(FinishReason::Stop) => String::new(),
            _ => self.detokenizer.push(token),
        };
        if update.finish.is_some() {
            piece.push_str(&self.detokenizer.finish());
        }
        let (mut text, met) = self.watch(piece);
        let finish = match (met, update.finish) {
            (Some(stop), _) => Some(Finish::StopString(self.stop_strings[stop].clone())),
            (None, None) => None,
            (None, Some(reason)) => {
                text.push_str(&self.matcher.finish());
                Some(if reason == FinishReason::Stop { Finish::EndToken(token) } else { Finish::Length })
            }
        };
        self.ended = finish.is_some();
        let logprobs = update
            .logprobs
            .map(|logprobs| TokenLogprobs { chosen: (token, logprobs.chosen), top: logprobs.top });
        Delta {
            index: self.index,
            text,
            tokens: vec![token],
            logprobs: logprobs.into_iter().collect(),
            finish,
        }
    }

    /// Holds back what may become a stop string. The text of the first `min_tokens` tokens is not looked at: a stop
    /// string counts only when all of it comes behind them.
    fn watch(&mut self, piece: String) -> (String, Option<usize>) {
        if self.stop_strings.is_empty() || self.num_tokens <= self.min_tokens {
            return (piece, None);
        }
        let step = self.matcher.push(&piece);
        (step.text, step.matched)
    }
}
