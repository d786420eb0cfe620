"""Tables of questions that neither paper answers: what `evals.questions` and `evals.forgetting` make of the trained runs."""

from evals.records.schema.column import ARCH, RUN, Column, flag, number, text, whole

TABLES: dict[str, tuple[Column, ...]] = {
    "questions": (
        text(
            "question",
            "the gap to MoE-8 as tokens grow, memory's share of the sparse parameters, or where a layer gains over dense",
            choices=("gap", "split", "where"),
        ),
        ARCH,
        text("quantity", "what `value` is"),
        text("unit", "of `value`", False),
        number("at", "", "tokens (gap) or memory's share (split) that the value was taken at, if one", False),
        number("value", "", "in `unit`; empty where there is none, and `reason` says why", False),
        number("ci_low", "", "lower end of the 95 % interval over seeds; empty where it is unbounded or unknown", False),
        number("ci_high", "", "upper end of it", False),
        whole("n", "seeds", "behind the value", False),
        whole("n_needed", "seeds", "that tell such a value from zero with 80 % power, where these do not", False),
        text(
            "state",
            "answered: the interval leaves zero out, or the value needs none",
            choices=("answered", "underpowered", "not tested"),
        ),
        text("reason", "for the state, or a remark", False),
        text("scale", "sizes, tokens, preset and device of the runs", False),
        text("runs", "ids of the runs behind the value, apart by blanks", False),
    ),
    "where": (
        ARCH,
        text("size", "name of the size in the preset"),
        whole("d_model", "", "width of the residual stream"),
        whole("tokens", "tokens", "trained on"),
        text(
            "by",
            "what test tokens are split by: how often training read the rows that a token reads (mean log over its picks), how "
            "often the target stands in the training shard, or the former within each fifth of the latter",
            choices=("frequency", "reads", "reads at equal frequency"),
        ),
        whole("bin", "", "fifth of the test tokens, from 1, the rarest"),
        number("low", "times", "lower end of the fifth, mean over seeds; empty within fifths", False),
        number("high", "times", "upper end of it", False),
        whole("targets", "tokens", "of the test text in the fifth, mean over seeds"),
        number("gain", "nats/token", "loss of the dense model of one size, seed and tokens minus this one's: above 0 it helps"),
        number("ci_low", "nats/token", "lower end of the 95 % interval over seeds; empty without repeated seeds", False),
        number("ci_high", "nats/token", "upper end of it", False),
        whole("n", "seeds", "behind the gain"),
        text("runs", "ids of the runs behind the gain and of their dense counterparts, apart by blanks"),
    ),
    "forgetting": (
        RUN,
        ARCH,
        text("size", "name of the size in the preset"),
        whole("seed", "", "of the run; its people and the order of their biographies are its own"),
        text(
            "way",
            "what learns: all parameters, LoRA's adapters, or the value rows that the new facts read and text rarely does",
            choices=("full", "lora", "slots"),
        ),
        text(
            "kind",
            "a point of a `curve`; where the curve first knows `level` of the new facts, on straight lines between its points "
            "(its end, where it never does); or that of a trial of a rate, with other people and on validation text",
            choices=("curve", "level", "tuning"),
        ),
        number("level", "fraction", "of the new facts at which the ways are compared"),
        flag("reached", "whether the curve got to it; ways are compared only where all did"),
        number("lr", "", "learning rate"),
        text("optimizer", "`adamw` or `sgd`, without weight decay"),
        flag("chosen", "whether the trial's rate is the one its way was taught with; empty for other kinds", False),
        flag("edge", "whether that rate is the lowest or highest tried; empty for other kinds", False),
        whole("trained", "parameters", "that may change"),
        number("passes", "", "biographies read of each new person"),
        number("tokens", "tokens", "read"),
        number("known", "fraction", "of the new facts, right of up to ten choices"),
        number("old_known", "fraction", "of the old facts, of people of the corpus"),
        number("old_change", "fraction", "of the old facts, since before the teaching: below 0 is forgotten"),
        number("old_loss_change", "nats", "that the right answer on an old fact costs among its choices, since before"),
        number("text_loss", "nats/token", "on held-out text, sources weighted as in the headline"),
        number("text_change", "nats/token", "of that since before, paired by window: above 0 is forgotten"),
        number("text_stderr", "nats/token", "standard error of the change over windows"),
    ),
}
