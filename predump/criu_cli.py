"""``predump criu``: what has to do with CRIU's own formats and protocols."""

import typer

from predump.criu_images_cli import (
    dedup_command,
    diff_command,
    export_command,
    import_command,
    show_command,
    verify_command,
)
from predump.criu_pages_cli import (
    fetch_command,
    lazy_server_command,
    received_command,
    send_command,
)
from predump.criu_service_cli import SHIM_SETTINGS, service_command, shim_command, tasks_command

criu_app = typer.Typer(
    help="Stand in for CRIU, its RPC and its command; exchange pages with real CRIU.",
    no_args_is_help=True,
)
criu_app.command("service")(service_command)
criu_app.command("tasks")(tasks_command)
criu_app.command("shim", context_settings=SHIM_SETTINGS)(shim_command)
criu_app.command("send")(send_command)
criu_app.command("received")(received_command)
criu_app.command("lazy-server")(lazy_server_command)
criu_app.command("fetch")(fetch_command)
criu_app.command("export")(export_command)
criu_app.command("import")(import_command)
criu_app.command("show")(show_command)
criu_app.command("verify")(verify_command)
criu_app.command("diff")(diff_command)
criu_app.command("dedup")(dedup_command)
