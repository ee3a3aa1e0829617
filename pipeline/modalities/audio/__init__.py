"""The modality `audio`: clips of sound with one class each, see README.md."""
