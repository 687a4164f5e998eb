"""undiffuse likelihood, on a small run."""

import json

import numpy as np
import pytest
import yaml

from undiffuse.data import digits

FAST = ("--n", 4, "--draws", 2, "--chain", 10, "--sampler", "heun", "--steps", 8, "--estimated")


def test_it_measures_and_writes_every_sample_and_shards_merge_to_the_same(run, call, refused, tmp_path):
    out = tmp_path / "whole.json"
    code, printed, shown = call("likelihood", run, *FAST, "--out", out, "--json")
    assert code == 0, shown
    summary, stored = json.loads(printed), json.loads(out.read_text())
    assert "samples" not in summary and len(stored["samples"]["ode"]) == 4
    assert summary["ode"]["evaluations"] == 16 and summary["n"] == 4
    for i in (1, 2):
        assert call("likelihood", run, *FAST, "--shard", f"{i}/2", "--out", tmp_path / f"{i}.json")[0] == 0
    code, printed, shown = call("likelihood", run, "--merge", tmp_path / "2.json", "--merge", tmp_path / "1.json")
    assert code == 0 and "probability-flow ODE" in shown and "4 samples of digits" in shown
    both = ("--merge", tmp_path / "2.json", "--merge", tmp_path / "1.json")
    code, printed, _ = call("likelihood", tmp_path / "nowhere", *both, "--n", 9, "--part", "train", "--json")
    merged = json.loads(printed)
    facts = ("run", "part", "asked", "data_hash", "weights", "undiffuse", "n", "shard")
    assert {name: merged[name] for name in facts} == {name: stored[name] for name in facts}
    assert (merged["part"], merged["asked"], merged["shard"]) == ("held-out", 4, [1, 1])
    for name in ("ode", "continuous_bound", "discrete_bound"):
        assert json.loads(printed)[name]["bits_per_dim"] == pytest.approx(summary[name]["bits_per_dim"], abs=1e-3)
    refused(call("likelihood", run, "--merge", tmp_path / "2.json"), "of 2 shards these are missing: 1/2")
    assert call("likelihood", run, *FAST, "--part", "train", "--shard", "1/2", "--out", tmp_path / "3.json")[0] == 0
    refused(
        call("likelihood", run, "--merge", tmp_path / "2.json", "--merge", tmp_path / "3.json"),
        "part (held-out and train)",
    )
    refused(call("likelihood", run, *FAST, "--shard", "1/5"), "4 samples cannot be cut into 5 shards")
    refused(call("likelihood", run, "--out", out), "exists", "--overwrite")
    refused(call("likelihood", run, "--merge", tmp_path / "1.json", "--merge", tmp_path / "1.json"), "come twice")
    (tmp_path / "other.json").write_text("{}")
    refused(call("likelihood", run, "--merge", tmp_path / "other.json"), "other.json", "no file of likelihoods")


def test_other_data_are_measured_under_their_own_labels(run, call, refused, tmp_path):
    held = digits.load().held_out
    arrays = {"images": held.samples[:40, 0].numpy(), "label": held.label[:40].numpy(), "split": np.arange(40) > 20}
    np.savez(tmp_path / "own.npz", **arrays)
    code, printed, shown = call("likelihood", run, "--data", tmp_path / "own.npz", *FAST, "--json")
    assert code == 0, shown
    assert json.loads(printed)["data"] == "own"
    arrays["label"] = arrays["label"] + 3
    np.savez(tmp_path / "strange.npz", **arrays)
    refused(call("likelihood", run, "--data", tmp_path / "strange.npz", *FAST), "classes")


def test_a_run_without_data_is_measured_on_those_given(own_run, call, refused, tmp_path):
    """As one that was imported."""
    spec = yaml.safe_load((own_run / "recipe.yaml").read_text())
    del spec["data"]
    (own_run / "recipe.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    held = digits.load().held_out
    np.savez(tmp_path / "own.npz", images=held.samples[:40, 0].numpy(), label=held.label[:40].numpy())
    refused(call("likelihood", own_run, *FAST), "names no data")
    code, _, shown = call("likelihood", own_run, "--data", tmp_path / "own.npz", *FAST)
    assert code == 0 and "of own" in shown


def test_bad_options_end_in_one_line(run, call, refused):
    refused(call("likelihood", run, "--part", "test"), "held-out, train")
    refused(call("likelihood", run, "--shard", "3/2"), "--shard is i/N")
    refused(call("likelihood", run, "--n", 0), "--n")
    refused(call("likelihood", run, "--out", "x.txt"), ".json")
    refused(call("likelihood", run, "--sampler", "ddpm"), "draws noise")
    refused(call("likelihood", run, "--data", "nowhere.npz"), "nowhere.npz")
