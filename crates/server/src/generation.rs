//! From prompts to answers: several engine requests carried out as one, streamed or collected.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::stream::{SelectAll, Stream, StreamExt};
use phalanx_engine::{Delta, Event, EventStream, Finish, RequestError, TokenLogprobs, Usage};
use phalanx_text::{SpecialTokens, TextError};
use tokio::sync::Semaphore;

use crate::error::{ApiError, Words};
use crate::sampling::SamplingFields;
use crate::state::Shared;

/// Prompts in the engine's hands, and how to call things when they fail.
pub(crate) struct Generation {
    /// Dropping a stream aborts its request, so dropping this aborts them all.
    streams: SelectAll<Tagged>,
    n: usize,
    /// Prompts that are not complete.
    open: usize,
    /// By prompt.
    usages: Vec<Usage>,
    words: Words,
}

/// What a [`Generation`] yields.
pub(crate) enum Progress {
    /// The delta's `index` counts over all prompts: `prompt * n + answer`.
    Delta(Delta),
    /// All answers are complete; what each prompt used. Nothing follows.
    Done(Vec<Usage>),
    /// The request failed as a whole. Nothing follows.
    Failed(ApiError),
}

/// One complete answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) tokens: Vec<u32>,
    pub(crate) logprobs: Vec<TokenLogprobs>,
    pub(crate) finish: Option<Finish>,
}

impl Generation {
    /// Hands every prompt to the engine; when one is refused, those before it are aborted.
    ///
    /// # Errors
    /// The engine's refusal; too many prompts or answers; a server about to stop.
    pub(crate) fn submit(
        state: &Shared,
        id: &str,
        prompts: Vec<Arc<[u32]>>,
        fields: &SamplingFields,
        words: Words,
    ) -> Result<Self, ApiError> {
        if state.draining() {
            return Err(ApiError::unavailable("The server is shutting down and takes no new requests."));
        }
        let most = state.options.max_answers;
        if most < prompts.len().saturating_mul(fields.n) {
            let message = format!(
                "`n` = {} for {} prompts is more than the {most} answers one request may ask for.",
                fields.n,
                prompts.len()
            );
            return Err(ApiError::invalid("n", message));
        }
        let mut streams = SelectAll::new();
        for (prompt, tokens) in prompts.into_iter().enumerate() {
            let request = fields.request(format!("{id}-{prompt}"), tokens, state.engine.max_model_len());
            let events =
                state.engine.submit(request).map_err(|error| ApiError::from_engine(&error, words))?;
            streams.push(Tagged { prompt, events });
        }
        let open = streams.len();
        Ok(Self { streams, n: fields.n, open, usages: vec![Usage::default(); open], words })
    }

    /// Waits for what happens next.
    pub(crate) async fn next(&mut self) -> Progress {
        loop {
            match self.streams.next().await {
                Some((prompt, Event::Delta(delta))) => {
                    return Progress::Delta(Delta { index: prompt * self.n + delta.index, ..delta });
                }
                Some((prompt, Event::Done(usage))) => {
                    self.usages[prompt] = usage;
                    self.open -= 1;
                    if self.open == 0 {
                        return Progress::Done(std::mem::take(&mut self.usages));
                    }
                }
                Some((_, Event::Failed(error))) => {
                    return Progress::Failed(ApiError::from_engine(&error, self.words));
                }
                None => {
                    return Progress::Failed(ApiError::unavailable(
                        "The engine ended before the answer did.",
                    ));
                }
            }
        }
    }

    /// Waits for all answers, by index.
    ///
    /// # Errors
    /// The first failure.
    pub(crate) async fn collect(mut self) -> Result<(Vec<Answer>, Vec<Usage>), ApiError> {
        let mut answers = vec![Answer::default(); self.open * self.n];
        loop {
            match self.next().await {
                Progress::Delta(delta) => {
                    let answer = &mut answers[delta.index];
                    answer.text.push_str(&delta.text);
                    answer.tokens.extend(delta.tokens);
                    answer.logprobs.extend(delta.logprobs);
                    answer.finish = delta.finish.or(answer.finish.take());
                }
                Progress::Done(usages) => return Ok((answers, usages)),
                Progress::Failed(error) => return Err(error),
            }
        }
    }
}

/// What several prompts used together; their times run side by side, so the longest counts.
pub(crate) fn total(usages: &[Usage]) -> Usage {
    let mut sum = Usage::default();
    for usage in usages {
        sum.prompt_tokens += usage.prompt_tokens;
        sum.cached_tokens += usage.cached_tokens;
        sum.completion_tokens += usage.completion_tokens;
        sum.preemptions += usage.preemptions;
        let (longest, timing) = (&mut sum.timing, &usage.timing);
        longest.queue_seconds = longest.queue_seconds.max(timing.queue_seconds);
        longest.first_token_seconds = longest.first_token_seconds.max(timing.first_token_seconds);
        longest.total_seconds = longest.total_seconds.max(timing.total_seconds);
    }
    sum
}

/// A prompt's events with its number.
struct Tagged {
    prompt: usize,
    events: EventStream,
}

impl Stream for Tagged {
    type Item = (usize, Event);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let prompt = self.prompt;
        Pin::new(&mut self.events).poll_next(cx).map(|event| event.map(|event| (prompt, event)))
    }
}

/// OpenAI's name for the end of an answer.
pub(crate) fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::EndToken(_) | Finish::StopString(_) => "stop",
        Finish::Length => "length",
    }
}

/// A prompt as clients give it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prompt {
    /// Text, whose control tokens (`<|im_start|>`) are obeyed: who writes a raw prompt writes its template too.
    Text(String),
    /// Ids of the vocabulary.
    Tokens(Vec<u32>),
}

/// Runs work on text away from the threads that serve connections: a long prompt takes milliseconds.
///
/// It waits for one of the `turns` first, which are a server's [`tokenizing`](crate::state::Inner::tokenizing).
///
/// # Errors
/// The work's own; 500 when it panicked.
pub(crate) async fn off_reactor<T: Send + 'static>(
    turns: &Arc<Semaphore>,
    words: Words,
    work: impl FnOnce() -> Result<T, TextError> + Send + 'static,
) -> Result<T, ApiError> {
    let turn = Arc::clone(turns).acquire_owned().await.expect("nobody closes the semaphore");
    let work = move || {
        // Work goes on when its client leaves, and so does its turn.
        let _turn = turn;
        work()
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| ApiError::from_text(&error, words)),
        Err(_) => Err(ApiError::internal("Tokenizing failed on this text; this is a bug of the server.")),
    }
}

/// Refuses a text that cannot fit the context whatever its tokens are, before any work is done on it.
///
/// # Errors
/// The context's length is exceeded.
pub(crate) fn check_length(state: &Shared, bytes: usize, words: Words) -> Result<(), ApiError> {
    let context = state.engine.max_model_len();
    if bytes <= context.saturating_mul(state.longest_token) {
        return Ok(());
    }
    let least = bytes.div_ceil(state.longest_token.max(1));
    let message = format!(
        "This model's maximum context length is {context} tokens. However, your prompt has {bytes} bytes, which are \
         at least {least} tokens. Please shorten the prompt."
    );
    Err(ApiError::from_engine(&RequestError::ContextLength { message }, words))
}

/// The ids of raw prompts.
///
/// # Errors
/// Those of the tokenizer; a text that cannot fit; an empty prompt is the engine's to refuse.
pub(crate) async fn encode_prompts(
    state: &Shared,
    prompts: Vec<Prompt>,
    words: Words,
) -> Result<Vec<Arc<[u32]>>, ApiError> {
    for prompt in &prompts {
        if let Prompt::Text(text) = prompt {
            check_length(state, text.len(), words)?;
        }
    }
    let tokenizer = Arc::clone(&state.tokenizer);
    off_reactor(&state.tokenizing, words, move || {
        let encode = |prompt: Prompt| match prompt {
            Prompt::Tokens(tokens) => Ok(tokens.into()),
            Prompt::Text(text) => tokenizer.encode(&text, SpecialTokens::Parse).map(Into::into),
        };
        prompts.into_iter().map(encode).collect()
    })
    .await
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::sync::mpsc;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn work_waits_for_its_turn_and_keeps_it_when_its_client_leaves() {
        let turns = Arc::new(Semaphore::new(1));
        let words = Words { prompt: "prompt", max_tokens: "max_tokens" };
        let (finish, finished) = mpsc::channel();
        let mut left = Box::pin(off_reactor(&turns, words, move || Ok::<u32, _>(finished.recv().unwrap())));
        assert!(left.as_mut().now_or_never().is_none());
        drop(left);
        assert_eq!(turns.available_permits(), 0, "the work goes on without its client");
        let mut next = Box::pin(off_reactor(&turns, words, || Ok(7)));
        assert!(next.as_mut().now_or_never().is_none());
        finish.send(1).unwrap();
        assert_eq!(next.await, Ok(7));
        assert_eq!(turns.available_permits(), 1);
    }
}
