"""What strangers wrote, or a disk has damaged: bounded in size and depth, nothing believed unchecked, nothing run.

| module | what it reads |
|---|---|
| `files` | bytes, JSON, and the headers of safetensors files and archives; `READ_ERRORS`, `shown` |
| `text_files` | text files that a user gives, with the line that is wrong |
| `torch_files` | plain tensors of torch.save |
| `yaml_file` | YAML, with the line of every key |
| `text` | names, paths and prompts of a configuration: which of them can be used |
| `names` | names from data as names of files, and back |
| `spreadsheet` | what a cell of a table may hold without being a formula |
"""
