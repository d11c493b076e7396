"""Write images in class folders (train/CLASS/*, val/CLASS/*) as MindRecord files, for data.name: mindrecord.

python scripts/make_mindrecord.py FOLDER OUTPUT_FOLDER [--shards N]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rpg_ms.config import OneLineParser  # noqa: E402
from rpg_ms.data.mindrecord import write_class_folders  # noqa: E402
from rpg_ms.errors import UserError, front_door  # noqa: E402
from rpg_ms.files import user_path  # noqa: E402


def main():
    parser = OneLineParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=user_path, help="folder with train/ and val/")
    parser.add_argument("output", type=user_path, help="folder to write to")
    parser.add_argument("--shards", type=int, default=1, help="files for each part")
    args = parser.parse_args()
    if not 1 <= args.shards <= 1000:
        raise UserError(f"--shards: {args.shards} is not in 1 to 1000")
    for part, count in write_class_folders(args.folder, args.output, args.shards).items():
        print(f"{part}: {count} images")


if __name__ == "__main__":
    front_door(main)
