//! The least time a load can take on the devices it runs on: what has to be read and multiplied, over what was measured.
//!
//! With `bandwidth` and `arithmetic` the sums over all devices, the limit of a piece of work is
//!
//! ```text
//! seconds = max(bytes / bandwidth, operations / arithmetic)
//!
//! a step that gives each of B sequences behind a context of c tokens one more:
//!   bytes      = replicas at work * weights + B * c * bytes of keys and values of a token
//!   operations = B * (2 * elements of the layers' and the output matrix + 4 * query width * c)
//!
//! a prompt of n tokens, to its first token:
//!   bytes      = replicas at work * weights
//!   operations = 2 * (n * elements of the layers + elements of the output matrix) + 4 * query width * n (n + 1) / 2
//! ```
//!
//! Weights count once a step however many chunks a prompt is computed in; activations and what is written count for
//! nothing. Devices that stand still (stages that wait for each other, replicas without a request) count like all
//! others: the limit is the machine's, not the layout's.

use serde::Serialize;

/// What one device was measured to do, a second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceLimits {
    /// Which device, for example `GPU 0`.
    pub name: String,
    /// Bytes read from its memory.
    #[serde(rename = "bytes_per_second")]
    pub bandwidth: f64,
    /// Floating-point operations of a large matrix product.
    #[serde(rename = "operations_per_second")]
    pub arithmetic: f64,
}

/// What a model's tokens cost; one replica, all its ranks together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ModelWork {
    /// Bytes of weights that every step reads.
    pub weights_bytes: usize,
    /// Elements of the layers' matrices.
    pub layer_elements: usize,
    /// Elements of the output matrix.
    pub head_elements: usize,
    /// Width of all layers' queries together.
    pub query_width: usize,
    /// Keys and values of one token.
    pub kv_bytes_per_token: usize,
}

/// The limits of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Roofline {
    /// Every device that takes part.
    pub devices: Vec<DeviceLimits>,
    /// What has to be done.
    pub work: ModelWork,
    /// Copies of the model, each with weights of its own.
    pub replicas: usize,
}

impl Roofline {
    /// Until each of `count` prompts of `input_len` tokens has its first token.
    #[must_use]
    pub fn prefill_seconds(&self, count: usize, input_len: usize) -> f64 {
        self.seconds(self.weights(count), self.prefill_operations(count, input_len))
    }

    /// One more token for each of `count` sequences behind `context` tokens.
    #[must_use]
    pub fn decode_seconds(&self, count: usize, context: f64) -> f64 {
        let bytes = self.weights(count) + self.context_bytes(count, context);
        self.seconds(bytes, self.decode_operations(count, context))
    }

    /// `count` requests of equal lengths from their prompts to their last token, in step.
    #[must_use]
    pub fn answer_seconds(&self, count: usize, input_len: usize, output_len: usize) -> f64 {
        let steps = (1..output_len).map(|made| self.decode_seconds(count, (input_len + made) as f64));
        self.prefill_seconds(count, input_len) + steps.sum::<f64>()
    }

    /// Requests of any lengths `(in, out)`, where one's prompt may be computed beside another's answer: all bytes against
    /// all operations. No order needs fewer steps than the longest answer has tokens.
    #[must_use]
    pub fn mixed_seconds(&self, requests: &[(usize, usize)]) -> f64 {
        let steps = requests.iter().map(|(_, output_len)| *output_len).max().unwrap_or(0);
        let mut bytes = self.weights(requests.len()) * steps as f64;
        let mut operations = 0.0;
        for &(input_len, output_len) in requests {
            let steps = output_len.saturating_sub(1) as f64;
            let mean_context = input_len as f64 + output_len as f64 / 2.0;
            bytes += steps * self.context_bytes(1, mean_context);
            operations +=
                self.prefill_operations(1, input_len) + steps * self.decode_operations(1, mean_context);
        }
        self.seconds(bytes, operations)
    }

    fn seconds(&self, bytes: f64, operations: f64) -> f64 {
        let sum = |of: fn(&DeviceLimits) -> f64| self.devices.iter().map(of).sum::<f64>();
        (bytes / sum(|device| device.bandwidth)).max(operations / sum(|device| device.arithmetic))
    }

    /// Bytes of weights of a step of `count` sequences.
    fn weights(&self, count: usize) -> f64 {
        (self.replicas.min(count) * self.work.weights_bytes) as f64
    }

    fn context_bytes(&self, count: usize, context: f64) -> f64 {
        count as f64 * context * self.work.kv_bytes_per_token as f64
    }

    fn decode_operations(&self, count: usize, context: f64) -> f64 {
        let elements = (self.work.layer_elements + self.work.head_elements) as f64;
        count as f64 * (2.0 * elements + 4.0 * self.work.query_width as f64 * context)
    }

    fn prefill_operations(&self, count: usize, input_len: usize) -> f64 {
        let tokens = input_len as f64;
        let pairs = tokens * (tokens + 1.0) / 2.0;
        let products = tokens * self.work.layer_elements as f64 + self.work.head_elements as f64;
        count as f64 * (2.0 * products + 4.0 * self.work.query_width as f64 * pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roofline(bandwidth: f64, arithmetic: f64) -> Roofline {
        let device = DeviceLimits { name: "GPU 0".to_owned(), bandwidth, arithmetic };
        let work = ModelWork {
            weights_bytes: 1000,
            layer_elements: 400,
            head_elements: 100,
            query_width: 5,
            kv_bytes_per_token: 10,
        };
        Roofline { devices: vec![device.clone(), device], work, replicas: 2 }
    }

    #[test]
    fn decoding_is_held_by_bytes_or_by_operations() {
        let slow_memory = roofline(50.0, 1e12);
        assert_eq!(slow_memory.decode_seconds(1, 20.0), (1000.0 + 200.0) / 100.0);
        // A second sequence wakes the second replica.
        assert_eq!(slow_memory.decode_seconds(2, 20.0), (2000.0 + 400.0) / 100.0);
        assert_eq!(slow_memory.decode_seconds(4, 20.0), (2000.0 + 800.0) / 100.0);
        let slow_arithmetic = roofline(1e12, 50.0);
        assert_eq!(slow_arithmetic.decode_seconds(2, 20.0), 2.0 * (1000.0 + 400.0) / 100.0);
    }

    #[test]
    fn a_prompt_sees_half_of_its_square_and_samples_once() {
        let limit = roofline(1e12, 0.5).prefill_seconds(1, 3);
        assert_eq!(limit, 2.0 * (3.0 * 400.0 + 100.0) + 4.0 * 5.0 * 6.0);
    }

    #[test]
    fn an_answer_is_its_prompt_and_a_step_for_each_token_after_the_first() {
        let roofline = roofline(50.0, 1e12);
        let steps = roofline.decode_seconds(1, 8.0) + roofline.decode_seconds(1, 9.0);
        assert_eq!(roofline.answer_seconds(1, 7, 3), roofline.prefill_seconds(1, 7) + steps);
        assert_eq!(roofline.answer_seconds(1, 7, 1), roofline.prefill_seconds(1, 7));
    }

    #[test]
    fn mixed_requests_share_the_weights_of_a_step() {
        let roofline = roofline(50.0, 1e12);
        let one = roofline.mixed_seconds(&[(6, 4)]);
        assert_eq!(one, (4.0 * 1000.0 + 3.0 * 8.0 * 10.0) / 100.0);
        let three = roofline.mixed_seconds(&[(6, 4); 3]);
        assert_eq!(three, (4.0 * 2000.0 + 3.0 * 3.0 * 8.0 * 10.0) / 100.0);
    }
}
