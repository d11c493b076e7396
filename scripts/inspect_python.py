"""Tell environment.sh whether the Python that runs this can run the project, by what pyproject.toml asks for.

Prints four lines: version and installation prefix; the MindSpore it has, if in range; the requirements it
lacks; where the packages are, if it is of a virtual environment. For an unsupported Python, prints the reason
and ends with status 1: even Python 2 must parse this.
"""

import os
import re
import sys
import sysconfig

with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "pyproject.toml")) as stream:
    PYPROJECT = stream.read()


def main():
    first, after = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', PYPROJECT).groups()
    if not (3, int(first)) <= sys.version_info[:2] < (3, int(after)):
        print("is Python %d.%d, not 3.%s to 3.%d" % (tuple(sys.version_info[:2]) + (first, int(after) - 1)))
        sys.exit(1)
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        if sys.prefix == sys.base_prefix:
            print("has no venv module (on Debian and Ubuntu: apt install python3-venv)")
            sys.exit(1)
    blocks = re.findall(r"^(?:dependencies|test) = \[(.*?)\]$", PYPROJECT, re.DOTALL | re.MULTILINE)
    requirements = re.findall(r'"(.*?)"', "".join(blocks))
    print("%s %s" % (sys.version.split()[0], sys.base_prefix))
    print(" ".join(met(r) for r in requirements if r.startswith("mindspore") and met(r)))
    print(" ".join(r for r in requirements if not met(r)))
    print("" if sys.prefix == sys.base_prefix else sysconfig.get_path("purelib"))


def met(requirement):
    """The version installed here if it meets `requirement`, else None."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        from packaging.requirements import Requirement  # comes with MindSpore

        parsed = Requirement(requirement)
        installed = version(parsed.name)
    except (ImportError, PackageNotFoundError):
        return None
    return installed if parsed.specifier.contains(installed, prereleases=True) else None


main()
