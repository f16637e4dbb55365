"""What Prometheus reads at /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from bridle.serve.scheduler import Scheduler

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class ServeMetrics:
    """Of one server: those of another in the same process are its own."""

    def __init__(self, scheduler: Scheduler) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a line more for each count, of when it began
        self.scheduler, self.registry = scheduler, CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "bridle_requests", "Requests, by route and status", ["route", "status"], registry=registry
        )
        self.prompt_tokens = Counter("bridle_prompt_tokens", "Tokens read", registry=registry)
        self.completion_tokens = Counter("bridle_completion_tokens", "Tokens drawn", registry=registry)
        self.first_token = Histogram(
            "bridle_first_token_seconds", "From a request to its first token", buckets=SECONDS, registry=registry
        )
        self.whole = Histogram(
            "bridle_answer_seconds", "From a request to the end of its answers", buckets=SECONDS, registry=registry
        )
        self.store_failures = Counter(
            "bridle_store_failures", "Times that the store could not be used, or took too long", registry=registry
        )
        self.kept = Counter("bridle_kept", "What was kept of users who agreed, by kind", ["kind"], registry=registry)
        self.swaps = Counter(
            "bridle_swaps", "Models that took another's place, or could not", ["result"], registry=registry
        )
        self.shares = Gauge(
            "bridle_model_share",
            "The share of the users who meet each model",
            ["arm", "model", "stamp"],
            registry=registry,
        )
        running = Gauge("bridle_answers_running", "Answers that are being written", registry=registry)
        running.set_function(lambda: sum(served.batch.running for served in [*scheduler.active]))
        waiting = Gauge("bridle_answers_waiting", "Answers that wait for their turn", registry=registry)
        waiting.set_function(
            lambda: max(0, scheduler.under_way - sum(one.batch.running for one in [*scheduler.active]))
        )

    def page(self) -> bytes:
        self.shares.clear()
        for arm, (served, share) in () if self.scheduler.roster is None else self.scheduler.roster.arms.items():
            self.shares.labels(arm, served.version, served.policy.stamp).set(share)
        return generate_latest(self.registry)
