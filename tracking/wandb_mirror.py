"""A mirror of the run in wandb, which may be slow, unreachable or broken; the run never is.

`metrics.jsonl` is the record. wandb is imported and started at the first thing to report, so that
neither delays the first training step; every wait is bounded, nothing prompts, and any error turns
the mirror off with one line. The longest delay at start, with a server that accepts connections
and never answers, is PROBE_SECONDS; one that answers the probe and then hangs costs
`init_timeout_seconds` and up to 10 s that wandb adds.
"""

import os
import secrets
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from files.disk import one_line
from settings.tracking import MODE_ALIASES, TrackingSettings
from tracking.notices import Say, to_stderr
from tracking.wandb_environment import give_folders, run_id, variable

PROBE_SECONDS = 5.0
FINISH_SECONDS = 60.0
_FINISH_MARGIN_SECONDS = 10.0  # for wandb to give up by itself, and for its service to stop
X_AXIS = "progress/tokens"


@dataclass(eq=False)
class WandbMirror:
    """Mirrors one run to wandb; never raises and never blocks for long.

    Args:
        settings: Whether, where and how.
        folder: The run's folder; wandb writes to `wandb/` in it.
        run_name: The run's name, and its group if nothing else names one.
        config: The resolved configuration, plain values without secrets: it is uploaded.
        say: Receives one line where the user should know something.
        default_group: The group where neither the settings nor WANDB_RUN_GROUP name one.
        resumes: Whether the run has begun, and is to stay the same run in wandb.
    """

    settings: TrackingSettings
    folder: Path
    run_name: str
    config: dict[str, Any]
    say: Say = to_stderr
    default_group: str | None = None
    resumes: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        self._folder_of_wandb = Path(variable("WANDB_DIR") or self.folder)
        self._run: Any = None
        self._enabled = self.settings.wandb and self.settings.mode != "disabled"

    def log(self, metrics: dict[str, float], tokens: int) -> None:
        """Report metrics by name at a point of the run.

        Args:
            metrics: Values by name, such as "train/loss".
            tokens: Tokens trained on so far: the x-axis of every chart.
        """
        self._report("log", lambda run: run.log({**metrics, X_AXIS: tokens}))

    def summary(self, values: dict[str, Any]) -> None:
        """Report values of the run as a whole."""
        self._report("summary", lambda run: run.summary.update(values))

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Report a table.

        Args:
            name: Its name in wandb.
            columns: Names of the columns.
            rows: One list per row, as long as `columns`.
        """

        def log_table(run: Any) -> None:
            import wandb

            run.log({name: wandb.Table(columns=[*columns], data=rows)})

        self._report("table", log_table)

    def image(self, name: str, path: Path) -> None:
        """Report an image file."""

        def log_image(run: Any) -> None:
            import wandb

            run.log({name: wandb.Image(str(path))})

        self._report("image", log_image)

    def finish(self, exit_code: int = 0) -> None:
        """End the run in wandb, waiting at most FINISH_SECONDS (and a little) for uploads.

        Args:
            exit_code: The process's exit status; wandb shows a run with another than 0 as failed.
        """
        run, self._run = self._run, None
        was_enabled, self._enabled = self._enabled, False
        if run is None:
            return

        def end() -> None:
            import wandb

            try:
                run.finish(exit_code=exit_code)
            finally:
                # Now, within the bound, and not at the process's exit, where it has none. The next
                # run of a multirun also gets a service of its own, should this one have died.
                wandb.teardown(exit_code)

        failures: list[Exception] = []
        # wandb bounds its own wait for uploads, but not that for its service.
        done = _within(FINISH_SECONDS + _FINISH_MARGIN_SECONDS, end, failures)
        if failures and not was_enabled:
            return  # its cause has been reported
        if failures:
            self.say(f"wandb: finish failed ({one_line(failures[0])}); {self._what_remains()}")
        elif not done:
            self.say(
                f"wandb: not all was uploaded within {FINISH_SECONDS:.0f} s; {self._what_remains()}"
            )

    def _report(self, what: str, report: Callable[[Any], Any]) -> None:
        """Do something with the wandb run, starting it first if need be."""
        if not self._enabled:
            return
        try:
            if self._run is None:
                self._run = self._start()
            if self._run is not None:
                report(self._run)
        except Exception as error:
            self.say(
                f"wandb: {what} failed ({type(error).__name__}: {one_line(error)}); the run "
                f"continues without it, {self._what_remains()}"
            )
            self._enabled = False

    def _start(self) -> Any:
        """Start a wandb run, online or else offline; None if the environment disables wandb."""
        # wandb's telemetry talks to the server even in offline mode, and where that does not answer
        # holds up the process's exit for 10 s and more. Read at import.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        give_folders(self.folder)
        import wandb

        wandb.setup(settings=wandb.Settings(silent=True))
        mode = self.settings.mode or os.environ.get("WANDB_MODE")
        mode = MODE_ALIASES.get(mode or "", mode)
        if mode == "disabled":
            self._enabled = False
            return None
        if mode != "offline":
            reason = self._reason_to_stay_offline(wandb)
            if reason is None:
                try:
                    run = self._init(wandb, "online")
                    self.say(f"wandb: {run.url}")
                    return run
                except Exception as error:
                    reason = f"the server could not start a run ({one_line(error)})"
            self.say(
                f"wandb: {reason}, so this run is recorded offline; upload it later with "
                f"`wandb sync {self._folder_of_wandb / 'wandb'}/offline-run-*`"
            )
        return self._init(wandb, "offline")

    def _reason_to_stay_offline(self, wandb: Any) -> str | None:
        """Return why wandb must not go online, or None if it may."""
        try:
            # The only call that looks for a key wherever wandb would, and never asks for one.
            if not wandb.login(prompt=False, verify=False):
                return "no API key is configured"
        except Exception as error:
            return f"the API key is not usable ({one_line(error)})"
        return _unreachable(wandb.setup().settings)

    def _init(self, wandb: Any, mode: str) -> Any:
        """Start a wandb run in a mode."""
        settings = {
            "init_timeout": self.settings.init_timeout_seconds,
            "finish_timeout": FINISH_SECONDS,
            "silent": True,
            # The run's own files hold its output, configuration and commit. wandb's copies could
            # hold more than the user means to publish: the diff of a working tree, a remote's URL.
            "console": "off",
            "disable_git": True,
            "disable_code": True,
        }
        known = wandb.Settings.model_fields  # of this version
        run = wandb.init(
            project=self.settings.project or variable("WANDB_PROJECT") or "kvlab",
            # wandb looks for what is None in the environment.
            entity=self.settings.entity,
            group=self.settings.group
            or variable("WANDB_RUN_GROUP")
            or self.default_group
            or self.run_name,
            tags=list(self.settings.tags) or None,
            name=variable("WANDB_NAME") or self.run_name,
            id=run_id(self.folder, secrets.token_hex(4), resumes=self.resumes),
            resume="allow",
            config=self.config,
            dir=str(self._folder_of_wandb),
            mode=mode,
            # A run of this process that was never finished must not receive this one's metrics.
            reinit="create_new",
            settings=wandb.Settings(**{key: settings[key] for key in settings if key in known}),
        )
        run.define_metric(X_AXIS)
        run.define_metric("*", step_metric=X_AXIS)
        return run

    def _what_remains(self) -> str:
        """Say where the metrics are."""
        return f"everything is in {self.folder}"


def _unreachable(wandb_settings: Any) -> str | None:
    """Ask the server for any answer within PROBE_SECONDS: wandb's own start would wait far longer.

    Args:
        wandb_settings: wandb's settings as loaded from its files and the environment.

    Returns:
        Why it cannot be reached, or None if it answered.
    """
    if getattr(wandb_settings, "http_proxy", None) or getattr(wandb_settings, "https_proxy", None):
        return None  # only wandb itself knows its proxies
    url = wandb_settings.base_url
    if not url.startswith(("http://", "https://")):
        return f"the server's address {url!r} is not an http one"

    def probe() -> None:
        try:
            urllib.request.urlopen(url, timeout=PROBE_SECONDS).close()
        except urllib.error.HTTPError:
            return  # an answer, if not a welcome
        except urllib.error.URLError as error:
            # It answered; wandb may know certificates that Python does not.
            if not isinstance(error.reason, ssl.SSLError):
                raise

    failures: list[Exception] = []
    # A thread, because the timeout of urlopen does not cover looking up the host's name.
    if not _within(PROBE_SECONDS, probe, failures):
        return f"{url} did not answer within {PROBE_SECONDS:.0f} s"
    if failures:
        reason = getattr(failures[0], "reason", failures[0])
        return f"{url} cannot be reached ({one_line(reason)})"
    return None


def _within(seconds: float, call: Callable[[], Any], failures: list[Exception]) -> bool:
    """Run a call in a thread that the process does not wait for.

    Args:
        seconds: Longest wait.
        call: What to run.
        failures: Receives the exception that the call raised, if any.

    Returns:
        Whether the call ended in time.
    """

    def guarded() -> None:
        try:
            call()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()
