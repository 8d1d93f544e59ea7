//! `/metrics`: the engine's figures in Prometheus' text format, under the names that vLLM's dashboards ask for.

use std::fmt::Write;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use phalanx_engine::{EngineHandle, Histogram, Snapshot};
use tokio::task::spawn_blocking;

use crate::families::{Family, Series};
use crate::state::{Inner, Shared};

/// Prometheus' own media type.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Where a counter is found.
type Count = fn(&Snapshot) -> u64;
/// Where a histogram is found.
type Sizes = fn(&Snapshot) -> &Histogram;

/// `GET /metrics`. A GPU's figures take milliseconds, which the reactor has not.
pub(crate) async fn metrics(State(state): State<Shared>) -> impl IntoResponse {
    let given = Shared::clone(&state);
    let given = spawn_blocking(move || given.families.iter().flat_map(|families| families()).collect());
    // Who gives figures and panics has none; ours are told all the same.
    let given: Vec<Family> = given.await.unwrap_or_default();
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], exposition(&state, &given))
}

/// All series.
fn exposition(state: &Inner, given: &[Family]) -> String {
    let engines: Vec<Labelled> = state
        .engine
        .engines()
        .iter()
        .enumerate()
        .map(|(index, engine)| Labelled {
            labels: format!("model_name=\"{}\",engine=\"{index}\"", escape(&state.model.id)),
            snapshot: engine.metrics(),
            last_step_age: last_step_age(engine),
        })
        .collect();
    let mut page = Page { text: String::with_capacity(32 << 10), engines: &engines };
    gauges(&mut page);
    counters(&mut page);
    histograms(&mut page);
    server(&mut page, state);
    given.iter().for_each(|family| page.family(family));
    page.text
}

/// One engine's figures and the labels of its series.
struct Labelled {
    labels: String,
    snapshot: Snapshot,
    last_step_age: f64,
}

/// How long an engine has waited for the step in flight, in seconds; 0 when it waits for none.
fn last_step_age(engine: &EngineHandle) -> f64 {
    let health = engine.health();
    if health.busy { health.last_step_age.as_secs_f64() } else { 0.0 }
}

/// The text in the making.
struct Page<'a> {
    text: String,
    engines: &'a [Labelled],
}

impl Page<'_> {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("a String takes all text");
    }

    /// One gauge of every engine.
    fn gauge(&mut self, name: &str, help: &str, value: impl Fn(&Labelled) -> f64) {
        self.head(name, "gauge", help);
        for engine in self.engines {
            self.line(format_args!("{name}{{{}}} {:?}", engine.labels, value(engine)));
        }
    }

    /// One counter of every engine, as several series told apart by one more label, or as one.
    fn counter(&mut self, name: &str, help: &str, label: &str, values: &[(&str, Count)]) {
        self.head(name, "counter", help);
        for engine in self.engines {
            for (kind, value) in values {
                let more = if label.is_empty() { String::new() } else { format!(",{label}=\"{kind}\"") };
                self.line(format_args!("{name}{{{}{more}}} {}", engine.labels, value(&engine.snapshot)));
            }
        }
    }

    /// What someone else counted.
    fn family(&mut self, family: &Family) {
        self.head(family.name, family.kind.word(), family.help);
        for Series { labels, value } in &family.series {
            let labels: Vec<String> =
                labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
            self.line(format_args!("{}{{{}}} {value:?}", family.name, labels.join(",")));
        }
    }

    /// One histogram of every engine.
    fn histogram(&mut self, name: &str, help: &str, value: Sizes) {
        self.head(name, "histogram", help);
        for Labelled { labels, snapshot, .. } in self.engines {
            let histogram = value(snapshot);
            for (bound, count) in histogram.cumulative() {
                self.line(format_args!("{name}_bucket{{{labels},le=\"{bound:?}\"}} {count}"));
            }
            self.line(format_args!("{name}_bucket{{{labels},le=\"+Inf\"}} {}", histogram.count()));
            self.line(format_args!("{name}_sum{{{labels}}} {:?}", histogram.sum()));
            self.line(format_args!("{name}_count{{{labels}}} {}", histogram.count()));
        }
    }
}

fn gauges(page: &mut Page<'_>) {
    let count = |value: usize| value as f64;
    page.gauge("vllm:num_requests_running", "Sequences that are being computed.", |engine| {
        count(engine.snapshot.scheduler.running)
    });
    page.gauge("vllm:num_requests_waiting", "Sequences that wait for a place.", |engine| {
        count(engine.snapshot.scheduler.waiting)
    });
    page.gauge("vllm:kv_cache_usage_perc", "Share of KV blocks in use, from 0 to 1.", |engine| {
        engine.snapshot.kv_cache_usage()
    });
    page.gauge("phalanx:live_requests", "Requests accepted that have not ended.", |engine| {
        count(engine.snapshot.live_requests)
    });
    page.gauge(
        "phalanx:queued_requests",
        "Requests accepted that have not had their first step.",
        |engine| count(engine.snapshot.queued_requests),
    );
    page.gauge("phalanx:kv_blocks_used", "KV blocks that running sequences hold.", |engine| {
        count(engine.snapshot.scheduler.used_blocks)
    });
    page.gauge("phalanx:kv_blocks_cached", "KV blocks the prefix cache knows, used or free.", |engine| {
        count(engine.snapshot.scheduler.cached_blocks)
    });
    page.gauge("phalanx:kv_blocks", "KV blocks of the pool.", |engine| {
        count(engine.snapshot.scheduler.total_blocks)
    });
    page.gauge("phalanx:step_age_seconds", "How long the step in flight has been awaited.", |engine| {
        engine.last_step_age
    });
}

fn counters(page: &mut Page<'_>) {
    let one = |page: &mut Page<'_>, name: &str, help: &str, value: Count| {
        page.counter(name, help, "", &[("", value)]);
    };
    one(page, "vllm:prompt_tokens_total", "Prompt tokens.", |s| s.prompt_tokens);
    one(page, "vllm:prompt_tokens_cached_total", "Prompt tokens the prefix cache spared.", |s| {
        s.cached_prompt_tokens
    });
    one(page, "vllm:generation_tokens_total", "Tokens sampled.", |s| s.generation_tokens);
    one(page, "vllm:num_preemptions_total", "Sequences that gave their blocks back to wait.", |s| {
        s.scheduler.preemptions
    });
    one(page, "vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.", |s| {
        s.scheduler.prefix_queries
    });
    one(page, "vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache.", |s| {
        s.scheduler.prefix_hits
    });
    one(page, "vllm:corrupted_requests_total", "Requests ended by NaN or infinite logits.", |s| {
        s.non_finite_requests
    });
    let finished: [(&str, Count); 4] = [
        ("stop", |s| s.finished.stop),
        ("length", |s| s.finished.length),
        ("abort", |s| s.finished.abort),
        ("error", |s| s.finished.error),
    ];
    page.counter(
        "vllm:request_success_total",
        "Answers that ended, by reason.",
        "finished_reason",
        &finished,
    );
    let rejected: [(&str, Count); 2] =
        [("overloaded", |s| s.rejected_overloaded), ("invalid", |s| s.rejected_invalid)];
    page.counter("vllm:admission_rejections_total", "Requests refused, by reason.", "reason", &rejected);
    one(page, "phalanx:routed_requests_total", "Requests that the router gave to this engine.", |s| {
        s.routed_requests
    });
    one(page, "phalanx:prefix_routed_tokens_total", "Their prompt tokens taken for known to it.", |s| {
        s.prefix_routed_tokens
    });
    one(page, "phalanx:steps_total", "Steps scheduled.", |s| s.scheduler.steps);
    one(page, "phalanx:computed_tokens_total", "Tokens scheduled to be computed.", |s| {
        s.scheduler.computed_tokens
    });
    one(page, "phalanx:preempted_tokens_total", "Tokens computed and lost by preemption.", |s| {
        s.scheduler.preempted_tokens
    });
    one(page, "phalanx:copied_blocks_total", "KV blocks copied on write.", |s| s.scheduler.copied_blocks);
}

fn histograms(page: &mut Page<'_>) {
    let table: [(&str, &str, Sizes); 14] = [
        ("vllm:iteration_tokens_total", "Tokens computed by a step.", |s| &s.iteration_tokens),
        ("vllm:time_to_first_token_seconds", "From submission to the first token.", |s| {
            &s.time_to_first_token
        }),
        ("vllm:inter_token_latency_seconds", "Between two tokens of an answer.", |s| &s.inter_token_latency),
        ("vllm:request_time_per_output_token_seconds", "An answer's mean time a token.", |s| {
            &s.time_per_output_token
        }),
        ("vllm:e2e_request_latency_seconds", "From submission to the last token.", |s| &s.e2e_latency),
        ("vllm:request_queue_time_seconds", "From submission to the first step.", |s| &s.queue_time),
        ("vllm:request_inference_time_seconds", "From the first step to the last token.", |s| {
            &s.inference_time
        }),
        ("vllm:request_prefill_time_seconds", "From the first step to the first token.", |s| &s.prefill_time),
        ("vllm:request_decode_time_seconds", "From the first token to the last.", |s| &s.decode_time),
        ("vllm:request_prompt_tokens", "Prompt lengths.", |s| &s.request_prompt_tokens),
        ("vllm:request_generation_tokens", "Answer lengths.", |s| &s.request_generation_tokens),
        // vLLM means the longest answer of a request; ours counts answers, which for `n` of 1 is the same.
        ("vllm:request_max_num_generation_tokens", "Answer lengths.", |s| &s.request_generation_tokens),
        ("vllm:request_params_n", "Answers asked for.", |s| &s.request_n),
        ("vllm:request_params_max_tokens", "Longest answers asked for.", |s| &s.request_max_tokens),
    ];
    for (name, help, value) in table {
        page.histogram(name, help, value);
    }
}

/// What the server itself counts.
fn server(page: &mut Page<'_>, state: &Inner) {
    let name = "phalanx:uptime_seconds";
    page.head(name, "gauge", "Seconds since the server started.");
    page.line(format_args!("{name} {:?}", state.started.elapsed().as_secs_f64()));
    let name = "phalanx:http_requests_total";
    page.head(name, "counter", "HTTP requests answered, by route, method and status.");
    for (key, count) in &*state.answered.lock().expect("nothing panics while it counts") {
        let (route, method, status) = (escape(&key.route), key.method, key.status);
        let labels = format!("route=\"{route}\",method=\"{method}\",status=\"{status}\"");
        page.line(format_args!("{name}{{{labels}}} {count}"));
    }
}

/// A label's value, escaped as the format wants it.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
