"""Zero-shot segmentation: the region where a finding's word map is high. Start reading at ``stage``.

``regions`` turns maps into regions and scores them, ``masks`` finds the masks that belong to image files, ``scoring``
goes through studies.
"""
