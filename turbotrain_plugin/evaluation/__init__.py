"""From raw outputs to numbers: decoding, matching, AP, displacement, EPA, and their protocol."""

from turbotrain_plugin.evaluation.average_precision import (
    AveragePrecision,
    DetectionValues,
    ap_global,
    ap_opencood,
)
from turbotrain_plugin.evaluation.decode import decode
from turbotrain_plugin.evaluation.displacement import Displacement, DisplacementValues
from turbotrain_plugin.evaluation.end_to_end import EndToEnd, EndToEndValues
from turbotrain_plugin.evaluation.evaluator import METRICS, EvaluationResult, Evaluator
from turbotrain_plugin.evaluation.late import join_objects
from turbotrain_plugin.evaluation.matching import MATCHERS, Pairs
from turbotrain_plugin.evaluation.metric import EvaluatedSample, Metric, MetricValues, SampleKey
from turbotrain_plugin.evaluation.protocol import EvaluationProtocol, protocol_of, split_hash

__all__ = [
    "MATCHERS",
    "METRICS",
    "AveragePrecision",
    "DetectionValues",
    "Displacement",
    "DisplacementValues",
    "EndToEnd",
    "EndToEndValues",
    "EvaluatedSample",
    "EvaluationProtocol",
    "EvaluationResult",
    "Evaluator",
    "Metric",
    "MetricValues",
    "Pairs",
    "SampleKey",
    "ap_global",
    "ap_opencood",
    "decode",
    "join_objects",
    "protocol_of",
    "split_hash",
]
