"""Widgets as a page talks to them: messages to a real kernel, of the newest versions and of Colab's.

Colab shows what a widget receives as the answer to a message, and drops what a thread sends later. Its versions stand in
an environment of their own, which `bash tools/colab.sh` makes.
"""

import json
import subprocess
import sys
import time
from base64 import b64encode
from pathlib import Path

import pytest
import torch
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpecManager

from consistency_models.pictures import to_png

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
COLAB = ROOT / ".venv/colab/bin/python"
OWN = to_png((torch.rand(3, 40, 60) * 255).byte())


def python_of(name):
    if name == "newest": return sys.executable
    if not COLAB.exists(): pytest.fail("no environment with Colab's versions: run `bash tools/colab.sh`")
    return str(COLAB)


def test_the_tests_of_the_widgets_pass_with_colabs_versions():
    versions = "import ipywidgets, ipykernel, IPython, traitlets; print(*(m.__version__ for m in (ipywidgets, ipykernel, IPython, traitlets)))"
    run = lambda *command: subprocess.run([python_of("colab"), *command], cwd=ROOT, capture_output=True, text=True)
    assert run("-c", versions).stdout.split() == ["7.7.1", "6.17.1", "7.34.0", "5.7.1"]
    files = [f"tests/test_{name}.py" for name in ("live", "painter", "explorers", "editor", "widgets")]
    result = run("-m", "pytest", "-q", *files)
    assert result.returncode == 0, result.stdout[-3000:]


class Page:
    """What a notebook's page does: it runs cells, sends what a user changed, and collects what comes back."""

    def __init__(self, manager):
        self.manager, self.client = manager, manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(60)
        self.run("import time, torch, ipywidgets\nfrom torch.utils.data import TensorDataset\n"
                 "from consistency_models import *\nfrom consistency_models.widgets import *")

    def answers(self, message_id, until=lambda changes: False, seconds=60):
        """The changes of widgets, `(comm, state)`, that come as answers to a message."""
        changes, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            message = self.client.get_iopub_msg(timeout=seconds)
            if message["parent_header"].get("msg_id") != message_id: continue
            content = message["content"]
            if message["msg_type"] == "error": pytest.fail("\n".join(content["traceback"]))
            if message["msg_type"] == "comm_msg" and content["data"].get("method") == "update":
                changes.append((content["comm_id"], content["data"]["state"] | dict.fromkeys(p[-1] for p in content["data"].get("buffer_paths", []))))
            if until(changes) or (message["msg_type"] == "status" and content["execution_state"] == "idle"): return changes
        pytest.fail("the kernel did not answer")

    def run(self, code): self.answers(self.client.execute(code))

    def value(self, expression):
        """The value of an expression in the kernel, as text."""
        reply = self.client.execute("", user_expressions={"it": f"str({expression})"}, reply=True, timeout=60)
        return reply["content"]["user_expressions"]["it"]["data"]["text/plain"].strip("'")

    def send(self, widget, state, buffers=(), paths=()):
        """Change a widget as its view does; returns the message's number."""
        data = {"method": "update", "state": state, "buffer_paths": list(paths)}
        message = self.client.session.msg("comm_msg", {"comm_id": self.value(f"{widget}.model_id"), "data": data})
        self.client.session.send(self.client.shell_channel.socket, message, buffers=list(buffers))
        return message["header"]["msg_id"]

    def change(self, widget, state, buffers=(), paths=()):
        """The widgets that changed in answer to a change of `widget`"""
        return dict(self.answers(self.send(widget, state, buffers, paths)))


@pytest.fixture(scope="module", params=["newest", "colab"])
def page(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    argv = [python_of(request.param), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "tried").mkdir()
    (folder / "tried" / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "tried", "language": "python"}))
    manager = KernelManager(kernel_name="tried", kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(folder)]))
    manager.start_kernel(cwd=str(ROOT))
    yield Page(manager)
    manager.shutdown_kernel(now=True)


EXPLORERS = {
    "sampling_explorer('digits')": ("controls['seed']", {"value": 5}),
    "editing_explorer('digits')": ("surface", {"strokes": "data:image/png;base64," + b64encode(to_png(torch.zeros(1, 8, 8).byte())).decode()}),
    "app().children[1].children[0]": ("controls['seed']", {"value": 5})}


@pytest.mark.parametrize("line", EXPLORERS)
def test_the_picture_is_the_answer_to_what_the_page_sent(page, line):
    part, state = EXPLORERS[line]
    page.run(f"live = {line}")
    changes = page.change(f"live.{part}", state)
    assert "value" in changes[page.value("live.picture.model_id")] and page.value("live.message.value") == ""


def test_a_file_is_uploaded_as_the_page_of_this_version_does_it(page):
    page.run("live = editing_explorer('digits')")
    about = {"name": "a.png", "type": "image/png", "size": len(OWN)}
    for times in (1, 2):
        page.run("live.show_image(1)")
        if page.value("ipywidgets.__version__") > "8":
            changes = page.change("live.upload", {"value": [{**about, "last_modified": 1_700_000_000_000}]}, [OWN], [["value", 0, "content"]])
        else:
            changes = page.change("live.upload", {"metadata": [about], "_counter": times, "data": [None]}, [OWN], [["data", 0]])
        assert "value" in changes[page.value("live.picture.model_id")] and page.value("live.own.shape") == "torch.Size([1, 1, 8, 8])"


def test_a_long_drawing_says_so_and_can_be_interrupted(page):
    page.run("live = Live(lambda n: time.sleep(60 * n) or b'', {'n': ipywidgets.IntSlider(0, max=1)})")
    message = page.send("live.controls['n']", {"value": 1})
    page.answers(message, lambda changes: any("working" in str(state.get("value")) for _, state in changes))
    page.manager.interrupt_kernel()
    assert ("stopped", "") in [(state.get("value"), "") for _, state in page.answers(message, seconds=20)]


def test_a_dashboard_is_fed_by_the_cell_and_stopped_by_an_interrupt(page):
    message = page.client.execute("""
trainer = Trainer(UNet(channels=(8, 16)), TensorDataset(load_digits()[0]), steps=100_000, batch_size=8)
try:
    for state in training_dashboard(trainer.train(), lambda net: torch.zeros(4, 1, 8, 8), every=5): pass
except KeyboardInterrupt: pass""")
    texts = lambda changes: [str(state.get("value")) for _, state in changes]
    page.answers(message, lambda changes: any("step 10 of" in t for t in texts(changes)))
    page.manager.interrupt_kernel()
    page.answers(message, seconds=20)
    assert 10 <= int(page.value("trainer.step")) < 100_000
