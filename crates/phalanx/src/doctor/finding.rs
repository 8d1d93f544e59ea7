//! One line of `doctor`: what was looked at, how it stands, and what to do about it.

use serde_json::{Value, json};

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// Nothing to do.
    Ok,
    /// It works, but not as well as it could.
    Warn,
    /// It does not work.
    Fail,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }

    /// The terminal's codes for green, yellow and red.
    fn colour(self) -> &'static str {
        match self {
            Self::Ok => "\x1b[32m",
            Self::Warn => "\x1b[33m",
            Self::Fail => "\x1b[31m",
        }
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Finding {
    /// What was looked at.
    pub(crate) topic: String,
    pub(crate) verdict: Verdict,
    /// How it stands.
    pub(crate) text: String,
    /// What to do; there is one whenever the verdict is not `Ok`.
    pub(crate) fix: Option<String>,
    /// The figures behind the text, for programs; `Null` where the text says all.
    pub(crate) data: Value,
}

impl Finding {
    pub(crate) fn ok(topic: impl Into<String>, text: impl Into<String>) -> Self {
        Self { topic: topic.into(), verdict: Verdict::Ok, text: text.into(), fix: None, data: Value::Null }
    }

    pub(crate) fn warn(topic: impl Into<String>, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warn, fix: Some(fix.into()), ..Self::ok(topic, text) }
    }

    pub(crate) fn fail(topic: impl Into<String>, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, fix: Some(fix.into()), ..Self::ok(topic, text) }
    }

    pub(crate) fn with(self, data: Value) -> Self {
        Self { data, ..self }
    }

    /// For people: the verdict first, the fix below.
    pub(crate) fn line(&self, coloured: bool) -> String {
        let word = self.verdict.word();
        let verdict = match coloured {
            true => format!("{}{word:4}\x1b[0m", self.verdict.colour()),
            false => format!("{word:4}"),
        };
        let fix = self.fix.iter().map(|fix| format!("\n{:18}fix: {fix}", ""));
        format!("{verdict}  {:10}  {}{}", self.topic, self.text, fix.collect::<String>())
    }

    /// For programs.
    fn json(&self) -> Value {
        let mut object = json!({"topic": self.topic, "verdict": self.verdict.word(), "text": self.text});
        if let Some(fix) = &self.fix {
            object["fix"] = fix.as_str().into();
        }
        if !self.data.is_null() {
            object["data"] = self.data.clone();
        }
        object
    }
}

/// The worst of them.
pub(crate) fn worst(findings: &[Finding]) -> Verdict {
    findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok)
}

/// All of them as one object.
pub(crate) fn as_json(findings: &[Finding]) -> Value {
    let all: Vec<Value> = findings.iter().map(Finding::json).collect();
    json!({"verdict": worst(findings).word(), "findings": all})
}

/// The last line.
pub(crate) fn summary(findings: &[Finding]) -> String {
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    match (count(Verdict::Warn), count(Verdict::Fail)) {
        (0, 0) => "All is well.".to_owned(),
        (warnings, 0) => format!("Everything works; {warnings} could be better."),
        (warnings, failures) => format!("{failures} failed, {warnings} could be better."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_to_do() {
        let finding = Finding::fail("port", "8000 is in use", "give another --port");
        assert_eq!(
            finding.line(false),
            "fail  port        8000 is in use\n                  fix: give another --port"
        );
        assert!(finding.line(true).starts_with("\x1b[31mfail\x1b[0m"));
        let all = [Finding::ok("cpu", "fine"), finding];
        assert_eq!(worst(&all), Verdict::Fail);
        assert_eq!(as_json(&all)["findings"][1]["fix"], "give another --port");
        assert_eq!(summary(&all), "1 failed, 0 could be better.");
    }
}
