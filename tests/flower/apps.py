"""Apps in Flower's message API that do not do what they should."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

FAULTY, STRANGE, SILENT, EMPTY = ClientApp(), ClientApp(), ClientApp(), ClientApp()


@FAULTY.train()
def raises(msg: Message, context: Context) -> Message:
    """Fails."""
    raise ValueError("mine")


@STRANGE.train()
def answers_something_else(msg: Message, context: Context) -> Message:
    """Answers with arrays of another name."""
    content = {"arrays": ArrayRecord([np.zeros(2)]), "metrics": MetricRecord({"num-examples": 1})}
    content["arrays"]["other"] = content["arrays"].pop("0")
    return Message(RecordDict(content), reply_to=msg)


@SILENT.train()
def answers_nothing(msg: Message, context: Context) -> None:
    """Forgets to answer."""
