//! A linear layer: rows of several stored tensors, one matrix for each run of them in the same format.

use std::ops::Range;

use phalanx_device::{Arena, DType, Device, Format, Matrix, Tensor, View, ViewMut};

use crate::error::LoadError;
use crate::layers::held_bytes;
use crate::weights::WeightFormats;
use crate::weights::load::Loader;
use crate::weights::shard::Piece;

/// Bytes of a matrix of a format, with so many rows and columns, as a device lays it out.
pub type MatrixBytes = fn(Format, usize, usize) -> usize;

/// What a linear layer is made of: pieces with the same columns, stacked along rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearSpec(pub Vec<Piece>);

impl LinearSpec {
    /// Runs of pieces that become one matrix. A GGUF file may keep v in another format than q and k.
    fn runs(&self, formats: &WeightFormats<'_>) -> Vec<(Format, &[Piece])> {
        let format = |piece: &Piece| formats.of(&piece.tensor, piece.tensor_columns);
        self.0.chunk_by(|a, b| format(a) == format(b)).map(|run| (format(&run[0]), run)).collect()
    }

    /// Bytes it takes in a rank's memory, where a matrix takes `matrix_bytes` of its format, rows and columns.
    #[must_use]
    pub fn bytes(&self, formats: &WeightFormats<'_>, matrix_bytes: MatrixBytes) -> usize {
        let run_bytes = |(format, run): (Format, &[Piece])| {
            let rows: usize = run.iter().map(|piece| piece.rows.len()).sum();
            let bias = match run[0].bias {
                Some(_) => Arena::tensor_bytes(DType::F32, 1, rows),
                None => 0,
            };
            matrix_bytes(format, rows, run[0].columns.len()) + bias
        };
        self.runs(formats).into_iter().map(run_bytes).sum()
    }
}

/// `out = x W^T + b` for this rank's rows and columns of W.
#[derive(Debug)]
pub struct Linear {
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    matrix: Matrix,
    bias: Option<Tensor>,
    /// Where its rows go in the output.
    columns: Range<usize>,
}

impl Linear {
    /// Takes the pieces of `spec`.
    ///
    /// # Errors
    /// There is not that much memory.
    pub fn load(loader: &Loader<'_>, spec: &LinearSpec) -> Result<Self, LoadError> {
        let mut parts = Vec::new();
        let mut start = 0;
        for (format, run) in spec.runs(&loader.formats()) {
            let matrix = loader.matrix(run, format)?;
            let biases: Vec<(&str, Range<usize>)> =
                run.iter().filter_map(|piece| Some((piece.bias.as_deref()?, piece.rows.clone()))).collect();
            let bias = match biases.is_empty() {
                true => None,
                false => Some(loader.vector(biases)?),
            };
            let columns = start..start + matrix.rows;
            start = columns.end;
            parts.push(Part { matrix, bias, columns });
        }
        Ok(Self { parts })
    }

    /// `x` `[tokens, columns]` to `out` `[tokens, rows]`.
    pub fn forward(&self, device: &Device, mut out: ViewMut<'_>, x: View<'_>) {
        for part in &self.parts {
            let columns = out.reborrow().slice_columns(part.columns.clone());
            device.matmul(columns, x, &part.matrix, part.bias.as_ref().map(Tensor::view));
        }
    }

    /// `out = silu(x gate^T) * (x up^T)` for rows of gate over as many of up, without biases; `gate_up` is room for both.
    pub fn gated_forward(&self, device: &Device, out: ViewMut<'_>, mut gate_up: ViewMut<'_>, x: View<'_>) {
        match self.parts.as_slice() {
            [Part { matrix, bias: None, .. }] => device.matmul_silu_mul(out, gate_up, x, matrix),
            // Stored in two formats.
            _ => {
                self.forward(device, gate_up.reborrow(), x);
                device.silu_mul(out, gate_up.view());
            }
        }
    }

    /// Bytes held in the device's memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let bias = |part: &Part| part.bias.as_ref().map_or(0, held_bytes);
        self.parts.iter().map(|part| part.matrix.bytes() + bias(part)).sum()
    }
}
