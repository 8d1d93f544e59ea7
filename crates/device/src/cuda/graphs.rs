//! A step's operations as one graph: recorded with one plan, started with each later one of the same size.
//!
//! What differs from step to step is read from the plan's arrays, which lie at the same addresses. The attention's grid
//! is as large as any step of as many sequences needs, and reads there how much of it has work.

use crate::DeviceError;
use crate::batch::Plan;
use crate::cuda::runtime::Graph;
use crate::cuda::steps::Offsets;
use crate::cuda::{Cuda, device_plan};
use crate::graph;

/// A graph, and where the arrays of its plans lie.
struct Recorded {
    graph: Graph,
    arrays: usize,
    offsets: Offsets,
    sequences: usize,
}

impl Cuda {
    /// See [`crate::Backend::record`].
    pub(super) fn record_graph(
        &self,
        plan: &Plan,
        work: &mut dyn FnMut(),
    ) -> Result<Option<graph::Graph>, DeviceError> {
        let (arrays, offsets) = device_plan(plan);
        // Items of many rows are launched by how many there are.
        let few = plan.device.as_ref().is_some_and(|planned| planned.many == 0);
        // A graph keeps its kernels for good: none is recorded while they are being chosen.
        let choosing = self.matmul.is_choosing();
        if choosing || !few || !self.steps.borrow().is_usual(arrays) || self.fault.borrow().is_some() {
            return Ok(None);
        }
        self.launch();
        let graph = Graph::capture(&self.stream, work);
        // What went wrong while recording is no fault of the device: nothing was carried out.
        if let Some(error) = self.fault.take() {
            return Err(error);
        }
        let graph = graph?;
        graph.upload(&self.stream)?;
        let sequences = plan.layout.sequences();
        Ok(Some(graph::Graph { recorded: Box::new(Recorded { graph, arrays, offsets, sequences }) }))
    }

    /// See [`crate::Backend::replay`].
    pub(super) fn replay_graph(&self, graph: &graph::Graph, plan: &Plan) -> bool {
        let recorded: &Recorded = graph.recorded.downcast_ref().expect("the graph of this kind of back end");
        let few = plan.device.as_ref().is_some_and(|planned| planned.many == 0);
        let place = (recorded.arrays, recorded.offsets);
        if !few || place != device_plan(plan) || recorded.sequences != plan.layout.sequences() {
            return false;
        }
        self.launch();
        self.note(recorded.graph.start(&self.stream));
        true
    }
}
