//! `phalanx doctor` from the outside, on whatever machine this is: text, JSON, and the exit code.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn doctor(cache: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_phalanx"))
        .args(["doctor", "--port", "0", "--cache-dir"])
        .arg(cache)
        .args(arguments)
        .output()
        .unwrap()
}

fn topics(report: &Value) -> Vec<(&str, &str)> {
    let findings = report["findings"].as_array().unwrap();
    findings
        .iter()
        .map(|finding| (finding["topic"].as_str().unwrap(), finding["verdict"].as_str().unwrap()))
        .collect()
}

#[test]
fn a_machine_without_gpus_is_a_machine_that_serves() {
    let cache = tempfile::tempdir().unwrap();
    let output = doctor(cache.path(), &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    for word in ["cpu", "memory", "model", "disk", "limit", "port"] {
        assert!(text.contains(&format!("  {word} ")), "{word}: {text}");
    }
    assert!(!text.contains('\x1b'), "no colours where nobody looks: {text}");
    let output = doctor(cache.path(), &["--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_ne!(report["verdict"], "fail");
    assert_eq!(topics(&report)[0], ("phalanx", "ok"));
    let port = topics(&report).into_iter().find(|(topic, _)| *topic == "port");
    assert_eq!(port, Some(("port", "ok")));
}

#[test]
fn what_does_not_work_is_an_exit_code_and_a_remedy() {
    let cache = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_phalanx"))
        .args(["doctor", "--port", &port, "--model", "no/such-model", "--json", "--cache-dir"])
        .arg(cache.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let failed: Vec<&Value> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["verdict"] == "fail")
        .collect();
    let told: Vec<&str> = failed.iter().map(|finding| finding["topic"].as_str().unwrap()).collect();
    assert_eq!(told, ["model", "port"], "{report:#}");
    assert!(failed.iter().all(|finding| finding["fix"].is_string()), "{report:#}");
}

#[test]
fn kernels_without_gpus_fail_with_a_sentence() {
    let output = Command::new(env!("CARGO_BIN_EXE_phalanx")).args(["doctor", "--kernels"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    match output.status.code() {
        // A machine with GPUs, and a binary for them: then its kernels are right.
        Some(0) => assert!(String::from_utf8(output.stdout).unwrap().contains("cases passed")),
        code => {
            assert_eq!(code, Some(1));
            assert!(!said.contains("cases missed"), "{said}");
            assert!(
                said.starts_with("error: ") && (said.contains("GPU") || said.contains("driver")),
                "{said}"
            );
        }
    }
}

#[test]
fn flags_that_do_nothing_together_are_refused() {
    for arguments in [
        &["--speed", "--json"][..],
        &["--speed", "--kernels"],
        &["--dtype", "bf16"],
        &["--kernels", "--model", "m"],
        &["--kernels", "--port", "1"],
    ] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_phalanx")).arg("doctor").args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_model_that_is_not_there_is_told_without_a_flag_that_nobody_gave() {
    let cache = tempfile::tempdir().unwrap();
    for (model, fix) in
        [("no/such-model", "phalanx pull no/such-model"), ("/no/such/folder", "that is there")]
    {
        let output = doctor(cache.path(), &["--model", model]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(fix) && !text.contains("--offline"), "{text}");
    }
}
