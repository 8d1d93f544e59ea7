//! The specification's table: prompts of several lengths, 512 tokens out, what that takes of each device.

use std::fmt;

use serde::Serialize;

use crate::report::Figure;

/// One line: equal requests, all submitted at once.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MatrixRow {
    /// Tokens of each prompt.
    pub input_len: usize,
    /// Tokens of each answer.
    pub output_len: usize,
    /// Requests at once.
    pub batch_size: usize,
    /// Tokens of answers a second, from submission to the last one's end.
    pub output: Figure,
    /// The same with the prompts' tokens.
    pub total: Figure,
    /// Until the last of the requests has its first token.
    pub first_token: Figure,
    /// Bytes the fullest device needs for it: weights, workspace, and the keys and values of these requests.
    pub device_bytes: usize,
}

/// Writes the rows under one head, memory under `memory_head`; nothing when there are none.
pub(crate) fn write_table(f: &mut fmt::Formatter<'_>, rows: &[MatrixRow], memory_head: &str) -> fmt::Result {
    if rows.is_empty() {
        return Ok(());
    }
    let line = |cells: [&str; 9]| {
        let [input, output, batch, rate, share, total, first, first_share, memory] = cells;
        format!(
            "  {input:>7} {output:>6} {batch:>6}  {rate:>24} {share:>9}  {total:>24}  {first:>24} {first_share:>9}  {memory:>10}"
        )
    };
    let head = [
        "in",
        "out",
        "batch",
        "output tok/s",
        "of limit",
        "total tok/s",
        "first token ms",
        "of limit",
        memory_head,
    ];
    writeln!(f, "{}", line(head))?;
    for row in rows {
        let cells = [
            row.input_len.to_string(),
            row.output_len.to_string(),
            row.batch_size.to_string(),
            row.output.spread(),
            row.output.share(),
            row.total.spread(),
            row.first_token.spread(),
            row.first_token.share(),
            format!("{:.1}", row.device_bytes as f64 / 1e9),
        ];
        writeln!(f, "{}", line(cells.each_ref().map(String::as_str)))?;
    }
    Ok(())
}
