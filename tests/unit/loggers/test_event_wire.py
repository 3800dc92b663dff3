from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from harness.loggers.event_wire import (
    ScalarLayout,
    file_version_event,
    frame,
    frame_size,
    hparams_event,
    session_start_event,
    text_event,
    varint,
)

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)


@settings(deadline=None)
@given(
    st.dictionaries(NAMES, st.floats(width=32), min_size=1, max_size=12),
    st.integers(0, 2**62),
    st.floats(0, 4e9),
)
def test_scalar_events_are_byte_for_byte_what_protobuf_writes(
    metrics: dict[str, float], step: int, wall_time_s: float
) -> None:
    values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
    expected = Event(wall_time=wall_time_s, step=step, summary=Summary(value=values))
    ours = ScalarLayout(list(metrics)).event(wall_time_s, step, metrics.values())
    parsed = Event.FromString(ours)
    assert [value.tag for value in parsed.summary.value] == list(metrics)
    if step and math.copysign(1, wall_time_s) > 0 and wall_time_s and not any(map(math.isnan, metrics.values())):
        assert ours == expected.SerializeToString()
        assert parsed == expected


def test_a_layout_may_be_used_again_and_again() -> None:
    layout = ScalarLayout(["a", "b"])
    first = layout.event(1.0, 1, [1e300, math.nan])
    second = layout.event(2.0, 2, [0.5, 3])
    one, two = Event.FromString(first), Event.FromString(second)
    assert one.summary.value[0].simple_value == math.inf
    assert math.isnan(one.summary.value[1].simple_value)
    assert [value.simple_value for value in two.summary.value] == [0.5, 3.0]


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (1e39, math.inf),
        (-1e39, -math.inf),
        (3.5e38, math.inf),
        pytest.param(10**400, math.inf, id="huge"),
        pytest.param(-(10**400), -math.inf, id="-huge"),
        (-math.inf, -math.inf),
        (3.4e38, struct.unpack("f", struct.pack("f", 3.4e38))[0]),
    ],
)
def test_numbers_beyond_float32_become_infinite(value: float, stored: float) -> None:
    event = Event.FromString(ScalarLayout(["a"]).event(1.0, 1, [value]))
    assert event.summary.value[0].simple_value == stored


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1))
def test_varints_are_protobufs(number: int) -> None:
    expected = SessionLog(msg="", checkpoint_path="").SerializeToString()
    assert expected == b""
    if number:
        assert Event(step=number).SerializeToString() == b"\x10" + varint(number)
    else:
        assert varint(0) == b"\x00"


@settings(deadline=None)
@given(st.binary(max_size=2000))
def test_frames_are_those_of_tensorboards_own_writer(data: bytes) -> None:
    class Sink:
        content = b""

        def write(self, part: bytes) -> None:
            self.content += part

    sink = Sink()
    RecordWriter(sink).write(data)
    assert frame(data) == sink.content
    assert frame_size(b"xx" + sink.content, 2) == len(sink.content)


def test_the_events_that_open_a_file_parse() -> None:
    version = Event.FromString(file_version_event(12.5))
    assert (version.wall_time, version.file_version) == (12.5, "brain.Event:2")
    start = Event.FromString(session_start_event(12.5, 58))
    assert start.step == 58
    assert start.session_log.status == SessionLog.START


def test_hyperparameters_parse_with_tensorboards_own_code() -> None:
    params = {"lr": 0.1, "width": 64, "nested.on": True, "opt": "sgd|ü", "huge": 10**400}
    event = Event.FromString(hparams_event(12.5, params))
    [value] = event.summary.value
    assert value.tag == metadata.SESSION_START_INFO_TAG
    assert value.metadata.plugin_data.plugin_name == metadata.PLUGIN_NAME
    info = metadata.parse_session_start_info_plugin_data(value.metadata.plugin_data.content)
    assert info.start_time_secs == 12.5
    assert info.hparams["lr"].number_value == 0.1
    assert info.hparams["width"].number_value == 64
    assert info.hparams["nested.on"].bool_value is True
    assert info.hparams["opt"].string_value == "sgd|ü"
    assert info.hparams["huge"].string_value == str(10**400)


def test_a_text_parses() -> None:
    event = Event.FromString(text_event(1.0, "params", "|a|b|"))
    [value] = event.summary.value
    assert value.tag == "params/text_summary"
    assert value.metadata.plugin_data.plugin_name == "text"
    assert value.tensor.string_val == [b"|a|b|"]
    assert [dim.size for dim in value.tensor.tensor_shape.dim] == [1]
