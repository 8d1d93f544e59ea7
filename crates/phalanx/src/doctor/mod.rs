//! `phalanx doctor`: what this machine is, what of it a server could use, and what to do where something is wrong.

pub(crate) mod finding;
pub(crate) mod gpus;
pub(crate) mod kernels;
mod machine;
mod models;
pub(crate) mod sums;

use std::net::SocketAddr;

use anyhow::{Result, bail};
use phalanx_device::DType;

use crate::args::{DoctorArgs, KernelDtype};
use crate::{cards, terminal};
use finding::{Finding, Verdict, as_json, summary, worst};

/// Looks, prints, and fails when something does not work.
pub(crate) fn run(args: &DoctorArgs) -> Result<()> {
    if args.kernels {
        return kernels::run(args);
    }
    if args.speed {
        let dtype = if args.dtype == KernelDtype::Fp16 { DType::F16 } else { DType::BF16 };
        terminal::say(&cards::speed(dtype, &args.libraries.folders())?);
        return Ok(());
    }
    let findings = findings(args);
    match args.json {
        true => terminal::say(&serde_json::to_string_pretty(&as_json(&findings))?),
        false => print(&findings),
    }
    match worst(&findings) {
        Verdict::Fail => bail!("something does not work: see the lines that say `fail`"),
        Verdict::Warn | Verdict::Ok => Ok(()),
    }
}

fn findings(args: &DoctorArgs) -> Vec<Finding> {
    let mut findings = vec![Finding::ok("phalanx", env!("CARGO_PKG_VERSION"))];
    findings.extend(machine::processor());
    let folders = args.libraries.folders();
    findings.extend(gpus::findings(machine::cards_on_the_bus(), cards::survey(&folders).as_ref()));
    findings.extend(models::findings(args));
    findings.extend(machine::limits());
    findings.push(machine::port(SocketAddr::new(args.host, args.port)));
    findings
}

fn print(findings: &[Finding]) {
    let coloured = terminal::is_watched();
    for finding in findings {
        terminal::say(&finding.line(coloured));
    }
    terminal::say(&summary(findings));
}
