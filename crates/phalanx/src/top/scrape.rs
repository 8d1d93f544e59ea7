//! A server's `/metrics`, taken apart: Prometheus' text format, as far as this project writes it.

use std::fmt;
use std::time::{Duration, Instant};

/// A server that does not answer within this is as good as gone.
const PATIENCE: Duration = Duration::from_secs(3);

/// All series at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Scrape {
    pub(crate) when: Instant,
    series: Vec<Series>,
}

#[derive(Clone, Debug, PartialEq)]
struct Series {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

/// How to ask.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// `http://127.0.0.1:8000`.
    pub(crate) url: String,
    pub(crate) api_key: Option<String>,
}

/// Why there are no figures; one sentence.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum NoFigures {
    /// Nobody listens there.
    Nobody(String),
    /// Somebody does, and gives something else.
    Refused(String),
}

impl fmt::Display for NoFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody(reason) | Self::Refused(reason) => f.write_str(reason),
        }
    }
}

/// An address as people write it: without `http://` as well.
pub(crate) fn full_address(url: &str) -> String {
    match url.contains("://") {
        true => url.to_owned(),
        false => format!("http://{url}"),
    }
}

impl Source {
    /// Asks once.
    ///
    /// # Errors
    /// Nobody answers, or not with figures.
    pub(crate) fn scrape(&self) -> Result<Scrape, NoFigures> {
        let url = format!("{}/metrics", self.url.trim_end_matches('/'));
        let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build().into();
        let mut request = agent.get(&url);
        if let Some(key) = &self.api_key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let mut response = request.call().map_err(|error| match error {
            ureq::Error::StatusCode(401) => {
                NoFigures::Refused(format!("{url} wants a key: give it with --api-key"))
            }
            ureq::Error::StatusCode(status) => {
                NoFigures::Refused(format!("{url} answers with status {status}"))
            }
            error @ (ureq::Error::Io(_) | ureq::Error::ConnectionFailed | ureq::Error::HostNotFound) => {
                NoFigures::Nobody(format!("no server at {}: {error}", self.url))
            }
            other => NoFigures::Refused(format!("{url}: {other}")),
        })?;
        let text = response
            .body_mut()
            .read_to_string()
            .map_err(|error| NoFigures::Refused(format!("{url}: {error}")))?;
        let scrape = Scrape::parse(&text);
        match scrape.series.is_empty() {
            true => Err(NoFigures::Refused(format!("{url} is no server's metrics"))),
            false => Ok(scrape),
        }
    }
}

impl Scrape {
    /// Lines that are no series are passed over.
    pub(crate) fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self { when: Instant::now(), series: lines.filter_map(series).collect() }
    }

    /// The sum of all series of this name; none when there is none.
    pub(crate) fn sum(&self, name: &str) -> Option<f64> {
        let mut values = self.named(name).map(|series| series.value).peekable();
        values.peek()?;
        Some(values.sum())
    }

    /// The value of the series of this name with this label.
    pub(crate) fn labelled(&self, name: &str, label: &str, value: &str) -> Option<f64> {
        let mut named = self.named(name);
        named.find(|series| label_of(series, label) == Some(value)).map(|series| series.value)
    }

    /// The values that a label has in the series of this name, each once, in their order.
    pub(crate) fn values(&self, name: &str, label: &str) -> Vec<String> {
        let mut values: Vec<String> = Vec::new();
        for value in self.named(name).filter_map(|series| label_of(series, label)) {
            if values.iter().all(|known| known != value) {
                values.push(value.to_owned());
            }
        }
        values
    }

    /// The values of a label among the series of this name that have another one.
    pub(crate) fn values_where(&self, name: &str, wanted: (&str, &str), label: &str) -> Vec<String> {
        let having = self.named(name).filter(|series| label_of(series, wanted.0) == Some(wanted.1));
        having.filter_map(|series| label_of(series, label)).map(str::to_owned).collect()
    }

    /// A histogram over all engines: each upper bound with how many values were at most that.
    pub(crate) fn buckets(&self, name: &str) -> Vec<(f64, f64)> {
        let name = format!("{name}_bucket");
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for series in self.named(&name) {
            let bound = label_of(series, "le").and_then(|bound| bound.replace('+', "").parse().ok());
            let Some(bound) = bound else { continue };
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, count)) => *count += series.value,
                None => buckets.push((bound, series.value)),
            }
        }
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        buckets
    }

    fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Series> {
        self.series.iter().filter(move |series| series.name == name)
    }
}

fn label_of<'a>(series: &'a Series, label: &str) -> Option<&'a str> {
    series.labels.iter().find(|(name, _)| name == label).map(|(_, value)| value.as_str())
}

/// `name{a="b",c="d"} 1.5`.
fn series(line: &str) -> Option<Series> {
    let (head, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let (name, labels) = match head.split_once('{') {
        Some((name, labels)) => (name, parse_labels(labels.strip_suffix('}')?)?),
        None => (head, Vec::new()),
    };
    Some(Series { name: name.to_owned(), labels, value })
}

fn parse_labels(text: &str) -> Option<Vec<(String, String)>> {
    let mut labels = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, quoted) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at,
                (_, '\\') => value.push(match characters.next()?.1 {
                    'n' => '\n',
                    escaped => escaped,
                }),
                (_, plain) => value.push(plain),
            }
        };
        labels.push((name.to_owned(), value));
        rest = quoted[end + 1..].trim_start_matches(',');
    }
    Some(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_told_apart_and_put_into_buckets() {
        let scrape = Scrape::parse(
            "# HELP a words\n# TYPE a counter\na{engine=\"0\",m=\"x \\\"y\\\" {z}, \\\\\"} 2\na{engine=\"1\",m=\"x\"} 3.5\nb 7\n\
             h_bucket{engine=\"0\",le=\"0.5\"} 1\nh_bucket{engine=\"0\",le=\"+Inf\"} 3\n\
             h_bucket{engine=\"1\",le=\"0.5\"} 2\nh_bucket{engine=\"1\",le=\"+Inf\"} 2\nno series\n",
        );
        assert_eq!((scrape.sum("a"), scrape.sum("b"), scrape.sum("c")), (Some(5.5), Some(7.0), None));
        assert_eq!(scrape.labelled("a", "engine", "1"), Some(3.5));
        assert_eq!(scrape.values("a", "m"), ["x \"y\" {z}, \\", "x"]);
        assert_eq!(scrape.values_where("a", ("engine", "1"), "m"), ["x"]);
        assert_eq!(scrape.buckets("h"), [(0.5, 3.0), (f64::INFINITY, 5.0)]);
    }

    #[test]
    fn an_address_is_taken_as_people_write_it() {
        assert_eq!(full_address("127.0.0.1:8000"), "http://127.0.0.1:8000");
        assert_eq!(full_address("https://far.away/x"), "https://far.away/x");
    }

    #[test]
    fn nobody_there_is_told_from_a_wrong_address() {
        let asked = |url: &str| Source { url: url.to_owned(), api_key: None }.scrape().unwrap_err();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(matches!(asked(&format!("http://{free}")), NoFigures::Nobody(_)));
        assert!(matches!(asked("other://x"), NoFigures::Refused(_)));
    }
}
