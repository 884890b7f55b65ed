"""SELinux's policy, as selinuxfs answers for it; types stand for whole labels.

fake/selinux/policy has one rule a line, as in the policy's own language:

    allow SOURCE TARGET:CLASS PERMISSION PERMISSION...    the class may be *, and then all is
    type_transition SOURCE TARGET:CLASS RESULT [NAME]
    permissive SOURCE
"""

from __future__ import annotations

import errno

from vfio_console_hook.errors import HostError

from .tree import Tree

POLICY = "fake/selinux/policy"
SELINUX = "sys/fs/selinux"
# Numbers of classes and permissions, made up: each policy that is loaded has its own.
CLASSES = {
    "process": ("fork", "transition", "sigchld"),
    "file": ("ioctl", "read", "write", "create", "getattr", "execute", "execute_no_trans",
             "entrypoint", "open"),
    "dir": ("write", "create", "getattr", "add_name", "search"),
    "lnk_file": ("read", "getattr"),
    "capability": ("chown", "sys_module", "sys_ptrace", "sys_admin"),
}  # fmt: skip


def install(tree: Tree, *rules: str) -> None:
    """Load a policy, and enforce it."""
    tree.put(f"{SELINUX}/enforce", "1")
    tree.put("etc/selinux/config", "SELINUX=enforcing")
    for number, (kind, permissions) in enumerate(CLASSES.items(), start=5):
        tree.put(f"{SELINUX}/class/{kind}/index", str(number))
        for bit, permission in enumerate(permissions, start=1):
            tree.put(f"{SELINUX}/class/{kind}/perms/{permission}", str(bit))
    tree.put(POLICY, "\n".join(rules))


def answer(tree: Tree, path: str, question: str) -> str:
    """Security/selinux/selinuxfs.c: sel_write_access, sel_write_create."""
    source, target, number, *name = question.split()
    kind = list(CLASSES)[int(number) - 5]
    rules = [line.split() for line in (tree.read(POLICY) or "").splitlines()]
    if path == f"{SELINUX}/create":
        return _created(rules, source, target, kind, name)
    if path != f"{SELINUX}/access":
        raise HostError.of("ask", f"/{path}", OSError(errno.EINVAL, ""))
    allowed = 0
    for words in rules:
        if words[0] != "allow" or words[1] != _type(source):
            continue
        of_type, _, of = words[2].partition(":")
        if of_type in (_type(target), "*") and of in (kind, "*"):
            given = CLASSES[kind] if of == "*" else words[3:]
            known = set(given) & set(CLASSES[kind])
            allowed |= sum(1 << CLASSES[kind].index(one) for one in known)
    permissive = ["permissive", _type(source)] in rules
    # "%x %x %x %x %u %x": allowed, decided, auditallow, auditdeny, seqno, flags
    return f"{allowed:x} ffffffff 0 ffffffff 3 {int(permissive):x}"


def _created(
    rules: list[list[str]], source: str, target: str, kind: str, name: list[str]
) -> str:
    """Security/selinux/ss/services.c, security_compute_sid.

    Without a rule a process keeps its domain, and an object gets the type of its directory. A
    rule with a name is only for an object of that name, and comes before one without
    (filename_compute_type). A process keeps its user, role and levels; an object has its user,
    object_r and the lower of its levels.
    """
    begin = ["type_transition", _type(source), f"{_type(target)}:{kind}"]
    found = [words[3:] for words in rules if words[:3] == begin and words[4:] in ([], name)]
    user, role, domain, levels = source.split(":", 3)
    created = max(found, key=len, default=[domain if kind == "process" else _type(target)])[0]
    if kind == "process":
        return f"{user}:{role}:{created}:{levels}\0"
    return f"{user}:object_r:{created}:{levels.partition('-')[0]}\0"


def _type(label: str) -> str:
    return label.split(":")[2]
