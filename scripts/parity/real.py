"""The real 0.5B model on a GPU: the greedy answers that transformers gives in float32, for twelve prompts."""
import concurrent.futures
import json
import pathlib

from server import Server, ServerError

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "golden" / "data" / "greedy.json"
# Q4_K weights are rounded to 16 bits on a GPU. Where the reference's best two logits are no further apart than this,
# the other one is as good an answer, and all that follows it differs.
NEAR_TIE = 0.1


def rows(options, folder, row_type):
    """One row a type: how many answers are the reference's, and how near a tie the others left it at."""
    golden = json.loads(GOLDEN.read_text())["cases"]
    return [one(options, folder, golden, dtype, row_type) for dtype in ("half", "bfloat16")]


def one(options, folder, golden, dtype, row_type):
    row = row_type(f"real 0.5b {dtype}, {len(golden)} prompts")
    command = [options.binary, "serve", "--model", options.real_model, "--port", "0", "--dtype", dtype,
               "--max-model-len", "4096", "--tp", "1", "--pp", "1", "--device", options.device]
    try:
        with Server(command, folder / f"real-{dtype}.log") as server:
            ask = lambda case: server.post("/generate", dict(
                input_ids=case["ids"], max_new_tokens=len(case["tokens"]), temperature=0, ignore_eos=True,
                repetition_penalty=1.0))["output_ids"]
            with concurrent.futures.ThreadPoolExecutor(len(golden)) as threads:
                answers = list(threads.map(ask, golden))
    except ServerError as error:
        row.miss = str(error)
        return row
    gaps = [gap for gap in map(fork_gap, answers, golden) if gap is not None]
    row.note = f"{len(golden) - len(gaps)} of {len(golden)} equal" + f"; forks at gaps of {gaps}" * bool(gaps)
    # bfloat16 has eight times the rounding.
    if any(NEAR_TIE * (1 if dtype == "half" else 8) < gap for gap in gaps):
        row.miss = "an answer leaves the reference's where there is no tie"
    return row


def fork_gap(answer, case):
    """The reference's gap between its best two logits where the answer leaves it; None when it does not.

    An answer of another length leaves it by no tie.
    """
    if len(answer) != len(case["tokens"]):
        return float("inf")
    for ours, theirs, gap in zip(answer, case["tokens"], case["gaps"]):
        if ours != theirs:
            return gap
    return None
