//! `phalanx top` from the outside, where there is no server; with one it is looked at in `real_model.rs`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::net::TcpListener;
use std::process::{Command, Output};

fn top(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_phalanx")).arg("top").args(arguments).output().unwrap()
}

#[test]
fn a_server_that_is_not_there_is_said() {
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = top(&["--once", "--url", &format!("http://{address}")]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains(&format!("no server at http://{address}")) && said.contains("phalanx serve"),
        "{said}"
    );
}

#[test]
fn a_pipe_is_no_terminal() {
    let output = top(&[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("--once"), "{said}");
}
