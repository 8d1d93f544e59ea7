//! One picture of a server, from two looks at its counters: lines of plain text.

use std::fmt;

use super::scrape::Scrape;

const BAR: usize = 20;

/// What changes between two looks is a rate; what does not is as it stands at the later one.
pub(crate) struct View<'a> {
    pub(crate) url: &'a str,
    /// The earlier look; the same as the later one at first.
    pub(crate) before: &'a Scrape,
    pub(crate) now: &'a Scrape,
}

/// The whole picture.
pub(crate) fn draw(view: &View<'_>) -> Vec<String> {
    let mut lines = vec![title(view), String::new()];
    lines.extend([requests(view), tokens(view), blocks(view), prefix(view)]);
    lines.push(latency(view, "TTFT", "vllm:time_to_first_token_seconds"));
    lines.push(latency(view, "ITL", "vllm:inter_token_latency_seconds"));
    lines.push(latency(view, "queue", "vllm:request_queue_time_seconds"));
    let gpus = view.now.values("phalanx:gpu_memory_total_bytes", "gpu");
    if !gpus.is_empty() {
        lines.push(String::new());
        lines.extend(gpus.iter().flat_map(|gpu| card(view, gpu)));
        lines.extend(gpus.iter().flat_map(|gpu| trouble(view, gpu)));
    }
    lines
}

impl View<'_> {
    fn seconds(&self) -> f64 {
        self.now.when.duration_since(self.before.when).as_secs_f64()
    }

    fn now(&self, name: &str) -> f64 {
        self.now.sum(name).unwrap_or(0.0)
    }

    /// How much a counter grew; one that shrank belongs to a server that was started anew.
    fn grown(&self, name: &str) -> f64 {
        (self.now(name) - self.before.sum(name).unwrap_or(0.0)).max(0.0)
    }

    fn rate(&self, name: &str) -> f64 {
        rate(self.grown(name), self.seconds())
    }
}

fn rate(grown: f64, seconds: f64) -> f64 {
    if 0.0 < seconds { grown / seconds } else { 0.0 }
}

fn title(view: &View<'_>) -> String {
    let models = view.now.values("vllm:num_requests_running", "model_name").join(", ");
    let up = view.now("phalanx:uptime_seconds") as u64;
    let up = match (up / 86_400, up / 3600 % 24, up / 60 % 60, up % 60) {
        (0, 0, 0, seconds) => format!("{seconds} s"),
        (0, 0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (0, hours, minutes, _) => format!("{hours} h {minutes} min"),
        (days, hours, ..) => format!("{days} d {hours} h"),
    };
    format!("{models} at {}, up {up}", view.url)
}

fn requests(view: &View<'_>) -> String {
    format!(
        "{:10} {:.0} running, {:.0} waiting, {:.0} not begun",
        "requests",
        view.now("vllm:num_requests_running"),
        view.now("vllm:num_requests_waiting"),
        view.now("phalanx:queued_requests")
    )
}

fn tokens(view: &View<'_>) -> String {
    format!(
        "{:10} {:.1} tok/s in, {:.1} tok/s out, {:.1} tok/s computed in {:.1} steps/s",
        "tokens",
        view.rate("vllm:prompt_tokens_total"),
        view.rate("vllm:generation_tokens_total"),
        view.rate("phalanx:computed_tokens_total"),
        view.rate("phalanx:steps_total")
    )
}

fn blocks(view: &View<'_>) -> String {
    let (used, all) = (view.now("phalanx:kv_blocks_used"), view.now("phalanx:kv_blocks"));
    let share = if 0.0 < all { used / all } else { 0.0 };
    let cached = view.now("phalanx:kv_blocks_cached");
    format!("{:10} {} {used:.0} of {all:.0} used, {cached:.0} cached", "KV blocks", bar(share))
}

/// Over the time between the looks, or since the start when nothing came in between.
fn prefix(view: &View<'_>) -> String {
    let (asked, found) = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total");
    let (asked, found) = match view.grown(asked) {
        0.0 => (view.now(asked), view.now(found)),
        grown => (grown, view.grown(found)),
    };
    let share = if 0.0 < asked { found / asked } else { 0.0 };
    format!("{:10} {} {found:.0} of {asked:.0} prompt tokens found", "prefix", bar(share))
}

/// Quantiles between the looks, or since the start when nothing was observed in between.
fn latency(view: &View<'_>, what: &str, name: &str) -> String {
    let all = view.now.buckets(name);
    let before = view.before.buckets(name);
    let earlier =
        |bound: f64| before.iter().find(|(known, _)| *known == bound).map_or(0.0, |(_, count)| *count);
    let new: Vec<(f64, f64)> =
        all.iter().map(|(bound, count)| (*bound, (count - earlier(*bound)).max(0.0))).collect();
    let (buckets, when) = match new.last() {
        Some((_, count)) if 0.0 < *count => (new, "now"),
        _ => (all, "since the start"),
    };
    let quantiles = [(0.5, "p50"), (0.9, "p90"), (0.99, "p99")];
    let told: Option<Vec<String>> = quantiles
        .iter()
        .map(|(share, name)| Some(format!("{name} {}", quantile(&buckets, *share)?)))
        .collect();
    match told {
        Some(told) => format!("{what:10} {} ({when})", told.join(", ")),
        None => format!("{what:10} nothing yet"),
    }
}

/// What a histogram knows of a quantile, in seconds.
#[derive(Debug, PartialEq)]
enum Quantile {
    /// In the first bucket, whose times are only known to be below its bound.
    Below(f64),
    About(f64),
    /// In the last bucket, which has no upper bound.
    Above(f64),
}

impl fmt::Display for Quantile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Below(bound) => write!(f, "< {}", time(*bound)),
            Self::About(seconds) => f.write_str(&time(*seconds)),
            Self::Above(bound) => write!(f, "> {}", time(*bound)),
        }
    }
}

/// As Prometheus' `histogram_quantile`, linear within a bucket that has two bounds. None of no values.
fn quantile(buckets: &[(f64, f64)], share: f64) -> Option<Quantile> {
    let (_, all) = buckets.last().filter(|(_, all)| 0.0 < *all)?;
    let wanted = all * share;
    let at = buckets.iter().position(|(_, count)| wanted <= *count)?;
    let (upper, count) = buckets[at];
    let Some((lower, below)) = at.checked_sub(1).map(|before| buckets[before]) else {
        return Some(Quantile::Below(upper)).filter(|_| upper.is_finite());
    };
    Some(match upper.is_infinite() {
        true => Quantile::Above(lower),
        false => Quantile::About(lower + (upper - lower) * (wanted - below) / (count - below).max(1e-9)),
    })
}

fn time(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        seconds => format!("{seconds:.2} s"),
    }
}

/// Two lines; a figure that the card does not tell is left out.
fn card(view: &View<'_>, gpu: &str) -> [String; 2] {
    let figure = |name: &str| view.now.labelled(&format!("phalanx:gpu_{name}"), "gpu", gpu);
    let gib = |bytes: f64| bytes / f64::from(1 << 30);
    let mut first = Vec::new();
    first.extend(figure("utilization_ratio").map(|share| format!("{} busy", bar(share))));
    if let (Some(used), Some(all)) = (figure("memory_used_bytes"), figure("memory_total_bytes")) {
        first.push(format!("{:.1} of {:.1} GiB", gib(used), gib(all)));
    }
    match (figure("power_watts"), figure("power_limit_watts")) {
        (Some(watts), Some(limit)) => first.push(format!("{watts:.0} of {limit:.0} W")),
        (watts, _) => first.extend(watts.map(|watts| format!("{watts:.0} W"))),
    }
    first.extend(figure("temperature_celsius").map(|celsius| format!("{celsius:.0} °C")));
    let mut second = view.now.values_where("phalanx:gpu_info", ("gpu", gpu), "name");
    second.extend(figure("sm_clock_hertz").map(|hertz| format!("{:.0} MHz", hertz / 1e6)));
    for (link, name) in [("pcie", "PCIe"), ("nvlink", "NVLink")] {
        let traffic = |way: &str| {
            let name = format!("phalanx:gpu_{link}_{way}_bytes_total");
            let counted = |scrape: &Scrape| scrape.labelled(&name, "gpu", gpu);
            match (counted(view.before), counted(view.now)) {
                (Some(before), Some(now)) => Some(rate((now - before).max(0.0), view.seconds()) / 1e9),
                // PCIe is not counted: the card tells a rate itself.
                _ => figure(&format!("{link}_{way}_bytes_per_second")).map(|rate| rate / 1e9),
            }
        };
        if let (Some(received), Some(sent)) = (traffic("received"), traffic("sent")) {
            second.push(format!("{name} {received:.1} in {sent:.1} out GB/s"));
        }
    }
    [format!("{:10} {}", format!("GPU {gpu}"), first.join(", ")), format!("{:10} {}", "", second.join(", "))]
}

/// What a person should see at once.
fn trouble(view: &View<'_>, gpu: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let slowed = view.now.values_where("phalanx:gpu_slowed", ("gpu", gpu), "reason");
    if !slowed.is_empty() {
        lines.push(format!("GPU {gpu}: clock held down by {}", slowed.join(", ")));
    }
    for (name, what) in [
        ("phalanx:gpu_xid_total", "critical errors (Xid)"),
        ("phalanx:gpu_ecc_uncorrected_total", "memory errors"),
    ] {
        if let Some(count) = view.now.labelled(name, "gpu", gpu).filter(|count| 0.0 < *count) {
            lines.push(format!("GPU {gpu}: {count:.0} {what}; `phalanx doctor` says what to do"));
        }
    }
    lines
}

/// `[██████░░░░░░░░░░░░░░]  31 %`.
fn bar(share: f64) -> String {
    let share = share.clamp(0.0, 1.0);
    let full = (share * BAR as f64).round() as usize;
    format!("[{}{}] {:3.0} %", "█".repeat(full), "░".repeat(BAR - full), share * 100.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn quantiles_are_those_of_prometheus() {
        let buckets = [(0.125, 0.0), (0.25, 10.0), (0.5, 20.0), (f64::INFINITY, 20.0)];
        assert_eq!(quantile(&buckets, 0.5), Some(Quantile::About(0.25)));
        assert_eq!(quantile(&buckets, 0.75), Some(Quantile::About(0.375)));
        assert_eq!(quantile(&[(0.1, 0.0), (f64::INFINITY, 0.0)], 0.5), None);
        assert_eq!(quantile(&[(f64::INFINITY, 4.0)], 0.5), None);
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn a_quantile_beyond_the_outer_bounds_is_told_as_a_bound() {
        let told = |buckets: &[(f64, f64)]| quantile(buckets, 0.5).unwrap().to_string();
        assert_eq!(told(&[(0.001, 4.0), (0.002, 4.0), (f64::INFINITY, 4.0)]), "< 1.0 ms");
        assert_eq!(told(&[(0.001, 0.0), (2.0, 0.0), (f64::INFINITY, 4.0)]), "> 2.00 s");
    }

    /// One look; all that counts has this value.
    fn look(counted: u32) -> Scrape {
        let text = format!(
            "vllm:num_requests_running{{model_name=\"m\",engine=\"0\"}} 3\n\
             vllm:num_requests_waiting{{model_name=\"m\",engine=\"0\"}} 1\n\
             phalanx:uptime_seconds 3700.5\n\
             vllm:generation_tokens_total{{engine=\"0\"}} {counted}\n\
             vllm:generation_tokens_total{{engine=\"1\"}} {counted}\n\
             vllm:prefix_cache_queries_total 100\nvllm:prefix_cache_hits_total 25\n\
             phalanx:kv_blocks 200\nphalanx:kv_blocks_used 50\n\
             vllm:time_to_first_token_seconds_bucket{{le=\"0.5\"}} {counted}\n\
             vllm:time_to_first_token_seconds_bucket{{le=\"+Inf\"}} {counted}\n\
             phalanx:gpu_memory_total_bytes{{gpu=\"0\",uuid=\"u\"}} 1073741824\n\
             phalanx:gpu_memory_used_bytes{{gpu=\"0\",uuid=\"u\"}} 536870912\n\
             phalanx:gpu_nvlink_sent_bytes_total{{gpu=\"0\",uuid=\"u\"}} {counted}e9\n\
             phalanx:gpu_nvlink_received_bytes_total{{gpu=\"0\",uuid=\"u\"}} 0\n\
             phalanx:gpu_pcie_sent_bytes_per_second{{gpu=\"0\"}} 1.5e9\n\
             phalanx:gpu_pcie_received_bytes_per_second{{gpu=\"0\"}} 0\n\
             phalanx:gpu_info{{gpu=\"0\",name=\"NVIDIA H200\"}} 1\n\
             phalanx:gpu_slowed{{gpu=\"0\",uuid=\"u\",reason=\"heat\"}} 1\n\
             phalanx:gpu_xid_total{{gpu=\"0\",uuid=\"u\"}} 2\n"
        );
        Scrape::parse(&text)
    }

    #[test]
    fn the_picture_has_rates_bars_and_trouble() {
        let (mut before, now) = (look(10), look(30));
        before.when = now.when - Duration::from_secs(2);
        let lines = draw(&View { url: "http://x", before: &before, now: &now });
        let picture = lines.join("\n");
        for part in [
            "m at http://x, up 1 h 1 min",
            "3 running, 1 waiting",
            "20.0 tok/s out",
            "25 % 50 of 200 used",
            "25 % 25 of 100 prompt tokens",
            "p50 < 500.0 ms, p90 < 500.0 ms, p99 < 500.0 ms (now)",
            "ITL        nothing yet",
            "GPU 0      0.5 of 1.0 GiB",
            "NVIDIA H200, PCIe 0.0 in 1.5 out GB/s, NVLink 0.0 in 10.0 out GB/s",
            "GPU 0: clock held down by heat",
            "GPU 0: 2 critical errors",
        ] {
            assert!(picture.contains(part), "{part} is not in\n{picture}");
        }
    }
}
