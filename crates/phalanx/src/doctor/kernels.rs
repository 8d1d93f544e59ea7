//! `doctor --kernels`: one table of every operation against the CPU's, from the cases that the device crate ran.

use anyhow::{Result, bail};
use phalanx_device::DType;
use serde_json::{Value, json};

use super::sums::Sum;
use crate::args::{DoctorArgs, KernelDtype};
use crate::{cards, terminal};

/// One case's outcome.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Case {
    pub(crate) dtype: &'static str,
    pub(crate) operation: &'static str,
    /// Its sizes.
    pub(crate) case: String,
    pub(crate) error: f32,
    /// The largest error that passes.
    pub(crate) limit: f32,
}

/// All outcomes, and the device they are of.
pub(crate) struct Checked {
    pub(crate) device: String,
    pub(crate) cases: Vec<Case>,
    /// Sums over the GPUs, by size.
    pub(crate) sums: Vec<Sum>,
}

/// All cases of one operation in one type.
#[derive(Debug, PartialEq)]
struct Row {
    operation: &'static str,
    dtype: &'static str,
    cases: usize,
    missed: usize,
    /// The case nearest to its limit, or furthest beyond it.
    error: f32,
    limit: f32,
}

/// Checks, prints, and fails when an operation missed.
pub(crate) fn run(args: &DoctorArgs) -> Result<()> {
    let dtypes: &[DType] = match args.dtype {
        KernelDtype::Bf16 => &[DType::BF16],
        KernelDtype::Fp16 => &[DType::F16],
        KernelDtype::Both => &[DType::BF16, DType::F16],
    };
    let checked = cards::check(dtypes, args.planted, &args.libraries.folders())?;
    match args.json {
        true => terminal::say(&serde_json::to_string_pretty(&as_json(&checked))?),
        false => terminal::say(&table(&checked)),
    }
    match checked.cases.iter().filter(|case| missed(case)).count() {
        0 => Ok(()),
        count => bail!(
            "{count} of {} cases missed: this GPU does not compute what the CPU computes",
            checked.cases.len()
        ),
    }
}

/// Not within the limit; NaN is within none.
fn missed(case: &Case) -> bool {
    !matches!(case.error.partial_cmp(&case.limit), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal))
}

fn rows(cases: &[Case]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for case in cases {
        let known = rows.iter_mut().find(|row| row.operation == case.operation && row.dtype == case.dtype);
        let (missed, worse) =
            (usize::from(missed(case)), |row: &Row| row.error * case.limit < case.error * row.limit);
        match known {
            None => rows.push(Row {
                operation: case.operation,
                dtype: case.dtype,
                cases: 1,
                missed,
                error: case.error,
                limit: case.limit,
            }),
            Some(row) => {
                row.cases += 1;
                row.missed += missed;
                // Where nothing is allowed, any error is worse than none.
                if worse(row) || (case.limit == 0.0 && row.error < case.error) || case.error.is_nan() {
                    (row.error, row.limit) = (case.error, case.limit);
                }
            }
        }
    }
    rows
}

fn table(checked: &Checked) -> String {
    let mut lines = vec![checked.device.clone()];
    lines.push(format!(
        "{:18} {:5} {:>5} {:>12} {:>10}  {}",
        "operation", "type", "cases", "worst error", "allowed", "outcome"
    ));
    for row in rows(&checked.cases) {
        let outcome = match row.missed {
            0 => "pass".to_owned(),
            missed => format!("MISS in {missed}"),
        };
        let allowed = if row.limit == 0.0 { "exact".to_owned() } else { format!("{:.0e}", row.limit) };
        lines.push(format!(
            "{:18} {:5} {:>5} {:>12.1e} {allowed:>10}  {outcome}",
            row.operation, row.dtype, row.cases, row.error
        ));
    }
    for case in checked.cases.iter().filter(|case| missed(case)) {
        lines.push(format!(
            "missed: {} {} {}: {:.1e}, {:.0e} allowed",
            case.dtype, case.operation, case.case, case.error, case.limit
        ));
    }
    lines.extend(checked.sums.iter().map(|sum| format!("all_reduce of {sum}")));
    let passed = checked.cases.iter().filter(|case| !missed(case)).count();
    lines.push(format!("{passed} of {} cases passed", checked.cases.len()));
    lines.join("\n")
}

fn as_json(checked: &Checked) -> Value {
    // JSON has no infinity: what was not computed at all has no error.
    let error = |error: f32| if error.is_finite() { json!(error) } else { Value::Null };
    let case = |case: &Case| {
        json!({"operation": case.operation, "dtype": case.dtype, "case": case.case, "error": error(case.error),
               "limit": case.limit, "passed": !missed(case)})
    };
    json!({
        "device": checked.device,
        "passed": !checked.cases.iter().any(missed),
        "cases": checked.cases.iter().map(case).collect::<Vec<_>>(),
        "all_reduce": checked.sums.iter().map(Sum::json).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(operation: &'static str, error: f32, limit: f32) -> Case {
        Case { dtype: "bf16", operation, case: "3 x 5".to_owned(), error, limit }
    }

    #[test]
    fn a_miss_shows_and_the_worst_case_of_each_operation_is_told() {
        let cases = vec![
            case("embed", 0.0, 0.0),
            case("attention", 1e-3, 1e-2),
            case("attention", 5e-3, 2e-2),
            case("embed", 0.5, 0.0),
            case("norm", f32::NAN, 1.0),
        ];
        let rows = rows(&cases);
        assert_eq!(
            rows[0],
            Row { operation: "embed", dtype: "bf16", cases: 2, missed: 1, error: 0.5, limit: 0.0 }
        );
        assert_eq!((rows[1].cases, rows[1].missed, rows[1].error), (2, 0, 5e-3));
        assert_eq!(rows[2].missed, 1);
        let us = vec![("flagged".to_owned(), 2.5), ("NCCL".to_owned(), 12.0)];
        let sum = Sum { bytes: 8192, us, chosen: "flagged".to_owned() };
        let checked = Checked { device: "GPU 0".to_owned(), cases, sums: vec![sum] };
        let table = table(&checked);
        assert!(table.contains("MISS in 1") && table.ends_with("3 of 5 cases passed"), "{table}");
        let line = "all_reduce of 8 KiB: flagged 2.5 us, NCCL 12.0 us; flagged is taken";
        assert!(table.contains(line), "{table}");
        assert_eq!(as_json(&checked)["all_reduce"][0]["us"]["NCCL"], 12.0);
        assert_eq!(as_json(&checked)["passed"], false);
        assert_eq!(as_json(&checked)["cases"][4]["error"], Value::Null);
    }
}
