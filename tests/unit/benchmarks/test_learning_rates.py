from benchmarks.jobs import Evaluation, Outcome
from benchmarks.learning_rates import table


def line(factor: float, *losses: float, has_diverged: bool = False) -> dict:
    evaluations = tuple(Evaluation(10 * place, loss, 0.5, {}) for place, loss in enumerate(losses))
    outcome = Outcome(evaluations, 1000, 1.0, 500, None, has_diverged)
    numbers = {"rows": 200, "epochs": 2, "batch_size": 4, "seed": 1, "learning_rate": factor * 5e-4}
    named = {"set": "facts", "method": "lora", "objective": "sft", "factor": factor, "machine": "a machine"}
    return named | numbers | {"outcome": outcome.plain()}


def cells(*lines: dict) -> list[str]:
    row = next(row for row in table(lines).splitlines() if row.startswith("| facts"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_table_says_how_far_the_automatic_rate_is_above_the_best():
    assert cells(line(1.0, 4.0, 1.1), line(2.0, 4.0, 1.0))[-2:] == ["0.0005", "10.0% (× 2)"]
    assert cells(line(1.0, 4.0, 1.0), line(2.0, 4.0, 2.0))[-1] == "0.0% (× 1)"
    assert cells(line(1.0, 4.0, 1.0, 1.3), line(2.0, 4.0, 1.1))[-1] == "0.0% (× 1)"  # its best checkpoint is the result


def test_a_better_loss_on_the_way_stands_beside_the_last_one():
    assert "1.2000 (1.1000 at 10)" in cells(line(1.0, 4.0, 1.1, 1.2))
    assert "1.1000" in cells(line(1.0, 4.0, 1.2, 1.1))


def test_a_job_that_diverged_is_never_the_best():
    shown = cells(line(1.0, 4.0, 2.0), line(4.0, 4.0, 1.0, has_diverged=True))
    assert "diverged" in shown and shown[-1] == "0.0% (× 1)"
    assert cells(line(1.0, 4.0, has_diverged=True))[-1] == "it diverged"


def test_a_job_that_was_run_again_stands_once_with_its_last_outcome():
    assert "3.0000" in cells(line(1.0, 4.0, 2.0), line(1.0, 4.0, 3.0))
