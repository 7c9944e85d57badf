"""What is read at each exposition, in Prometheus' text."""

from freeloop.metrics import Durations, Histogram, Metrics, Reading


def exposed(*readings):
    metrics = Metrics()
    metrics.watch(readings)
    return [line for line in metrics.render().decode().splitlines() if "freeloop_request" not in line]


def test_a_reading_is_a_counter_by_its_name_else_a_gauge_with_any_number_of_labels():
    assert exposed(
        Reading("made_total", "Made.", lambda: 3),
        Reading("open", "Open.", lambda: {"a": 1.5}, "pool"),
        Reading("lost", "Lost.", lambda: {("a", "b"): 2}, ("pool", "way")),
        Reading("away", "Away.", dict, "pool"),
    ) == [
        *("# HELP made_total Made.", "# TYPE made_total counter", "made_total 3.0"),
        *("# HELP open Open.", "# TYPE open gauge", 'open{pool="a"} 1.5'),
        *("# HELP lost Lost.", "# TYPE lost gauge", 'lost{pool="a",way="b"} 2.0'),
        *("# HELP away Away.", "# TYPE away gauge"),
    ]


def test_a_histogram_is_one_while_there_is_nothing_to_read_too():
    durations = Durations((0.1, 1.0))
    durations.add(0.5)
    assert exposed(
        Histogram("waits_seconds", "Waits.", lambda: {"main": durations}, "pool"),
        Histogram("lag_seconds", "Lag.", lambda: {(): durations}),
        Histogram("none_seconds", "None.", dict),
    ) == [
        *("# HELP waits_seconds Waits.", "# TYPE waits_seconds histogram"),
        'waits_seconds_bucket{le="0.1",pool="main"} 0.0',
        'waits_seconds_bucket{le="1.0",pool="main"} 1.0',
        'waits_seconds_bucket{le="+Inf",pool="main"} 1.0',
        *('waits_seconds_count{pool="main"} 1.0', 'waits_seconds_sum{pool="main"} 0.5'),
        *("# HELP lag_seconds Lag.", "# TYPE lag_seconds histogram"),
        *('lag_seconds_bucket{le="0.1"} 0.0', 'lag_seconds_bucket{le="1.0"} 1.0'),
        *('lag_seconds_bucket{le="+Inf"} 1.0', "lag_seconds_count 1.0", "lag_seconds_sum 0.5"),
        *("# HELP none_seconds None.", "# TYPE none_seconds histogram"),
    ]
